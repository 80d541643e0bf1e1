"""Options of the pretraining of the packaged language model. Torch-free."""

OPTIONS: dict[str, dict[str, type]] = {}
