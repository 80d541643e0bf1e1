"""What can be wrong with a configuration that is about learning coefficients; answers before torch is imported."""

from crux.schema import Config

LLC_KEYS = (
    "llc", "experiment", "seed", "resume", "resume_from", "retry_failed", "output_dir", "sweep_name", "tracking", "debug",
    "trainer.progress",
)  # fmt: skip
"""What has a meaning for experiments with learning coefficients."""


def check_llc(config: Config, given: set[str]) -> None:
    """Keys of such an experiment: those that have a meaning there, with values that can be."""
    llc = config.llc
    if llc is None:
        raise ValueError("task=llc: choose an experiment, experiment=llc/…")
    for key in sorted(given):
        if not any(key == known or key.startswith((f"{known}.", "hydra")) for known in LLC_KEYS):
            raise ValueError(
                f"{key} has no meaning for experiment=llc/{llc.experiment.value}; allowed are {', '.join(LLC_KEYS)}"
            )
    if not llc.length > 0:
        raise ValueError(f"llc.length={llc.length}: must be more than 0")
    if not llc.cases:
        raise ValueError("llc.cases=[]: must name one or more of regular, monomials, linear_networks, kgons, escape")
