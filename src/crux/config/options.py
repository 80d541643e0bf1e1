"""The dataclasses of the shared groups, by group and option."""

from crux.config.schema import Files, HubData, LanguageModel, Optimizer, Tracking

OPTIONS = {
    "model": {"language": LanguageModel},
    "data": {"files": Files, "hub": HubData},
    "optimizer": {"sae": Optimizer},
    "tracking": {"mlflow": Tracking},
}
