"""What a training is told: how the weights move, and for how long; which terms the loss has beside the subject's."""

from typing import NamedTuple, TypedDict

from crux.sae.training.sparsity import Sparsity


class Recipe(NamedTuple):
    """How the weights move, for how long, and how often that is told."""

    optimizer: str
    """`adam` or `adamw`."""
    lr: float
    threshold_rate: float | None
    """JumpReLU's log θ moves with so many times `lr`; None: there are no thresholds."""
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup_steps: int
    min_lr_factor: float
    clip: float
    max_steps: int
    log_every: int


class AuxK(NamedTuple):
    """The loss that brings dead latents back (Gao et al. 2406.04093, appendix A.2)."""

    coefficient: float
    k: int | None
    """Dead latents a token; None: half of the dimensions, as in the paper."""
    dead_after: int
    """Training tokens without firing."""


class Common(TypedDict):
    """What every module is made with, whatever its loss."""

    recipe: Recipe
    sparsity: Sparsity
    auxk: AuxK | None
    max_norm: float | None
    seed: int
    runs: tuple[str, ...]
    """Names of the runs that the SAEs are, one each: they share the data and the clean pass and nothing else. Empty: all the
    SAEs are one run."""
