"""Which keys of the configuration have a meaning for an experiment."""

from collections.abc import Collection

from crux.config.errors import UserError

ALWAYS = (
    "experiment", "seed", "resume", "resume_from", "retry_failed", "output_dir", "sweep_name", "tracking", "debug", "trainer.progress",
)  # fmt: skip
"""What has a meaning for every experiment on learning coefficients, degeneracy or bases, beside the task's own group."""


def refuse_others(given: Collection[str], allowed: Collection[str], *, experiment: str) -> None:
    """Raises a one-line UserError for a key of the command line that the experiment does not read.

    Args:
        allowed: keys, or groups of them (`toy` stands for `toy.densities` too).
    """
    for key in sorted(given):
        if not any(key == known or key.startswith((f"{known}.", "hydra")) for known in allowed):
            raise UserError(f"{key} has no meaning for experiment={experiment}; allowed are {', '.join(allowed)}")
