"""The packaged language model: directions that its residual stream needs, in every basis."""

from crux.experiments.interaction_basis.language import result

__all__ = ["result"]
