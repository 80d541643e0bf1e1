"""The packaged language model: directions that its residual stream needs, in every basis."""

from crux.degeneracy.experiments.language import result

__all__ = ["result"]
