"""The subject of the example plug-in: the packaged model without its last MLP."""

import torch

from crux.config.schema import LanguageModel
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject


def load(model: LanguageModel, *, device: torch.device, dtype: torch.dtype) -> Subject:
    """Load the packaged model, and make its last MLP write nothing."""
    subject = load_subject("tiny", process_weights=False, device=device, dtype=dtype)
    with torch.no_grad():
        for name, weight in subject.model.named_parameters():
            if name.startswith("transformer.h.7.mlp.c_proj"):
                weight.zero_()
    return subject
