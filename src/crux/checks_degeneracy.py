"""What can be wrong with an experiment on learning coefficients, degeneracy or bases; answers before torch is imported."""

from pathlib import Path

from crux.keys import refuse_others
from crux.schema import Config, Task, experiment_name
from crux.subjects.addition_folder import addition_folder
from crux.subjects.weight_files import check_weights

ALWAYS = (
    "experiment", "seed", "resume", "resume_from", "retry_failed", "output_dir", "sweep_name", "tracking", "debug", "trainer.progress",
)  # fmt: skip
"""What has a meaning for each of them, beside the task's own group."""

TRAINING = (
    "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer.weight_decay", "optimizer.warmup_steps",
    "optimizer.min_lr_factor", "trainer.max_steps", "trainer.log_every", "trainer.checkpoint_every", "trainer.accelerator",
)  # fmt: skip
"""What has a meaning where an experiment trains its network."""

OWN = {
    "interaction_basis/modular_addition": ("model.path", *TRAINING),
    "interaction_basis/modular_addition_training": TRAINING,
}
"""What else has a meaning for single experiments."""


def check_degeneracy(config: Config, given: set[str]) -> None:
    """Keys of such an experiment: those that have a meaning there, with values that can be."""
    group, name = experiment_name(config)
    refuse_others(given, (group, *ALWAYS, *OWN.get(f"{group}/{name}", ())), experiment=f"{group}/{name}")
    match config.task:
        case Task.llc:
            _check_llc(config)
        case Task.interaction_basis:
            _check_addition(config, name)
            _check_modularity(config)
            _check_dictionaries(config, name, given)
        case _:
            pass


def _check_llc(config: Config) -> None:
    llc = config.llc
    assert llc is not None
    if not llc.length > 0:
        raise ValueError(f"llc.length={llc.length}: must be more than 0")
    if not llc.cases:
        raise ValueError("llc.cases=[]: must name one or more of regular, monomials, linear_networks, kgons, escape")


def _check_addition(config: Config, name: str) -> None:
    """The modular-addition network: the folder that it is read from, or the sizes that it is trained with."""
    if not name.startswith("modular_addition"):
        return
    if config.model.path is not None:
        check_addition_folder(config.model.path)
    of = config.interaction_basis and config.interaction_basis.addition
    assert of is not None
    for key in ("p", "d_model", "n_heads", "d_mlp"):
        if getattr(of, key) < 1:
            raise ValueError(f"interaction_basis.addition.{key}={getattr(of, key)}: must be 1 or more")
    if of.d_model % of.n_heads:
        raise ValueError(
            f"interaction_basis.addition.d_model={of.d_model}: must be a multiple of the {of.n_heads} heads"
        )
    if not 0 < of.train_share < 1 or int(of.train_share * of.p**2) < 1:
        raise ValueError(
            f"interaction_basis.addition.train_share={of.train_share}: must be a share of the {of.p**2} pairs, between 0 and 1"
        )


def _check_modularity(config: Config) -> None:
    """How modules are looked for, where an experiment looks for them."""
    of = config.interaction_basis and config.interaction_basis.modularity
    if of is None:
        return
    if not of.resolution > 0:
        raise ValueError(f"interaction_basis.modularity.resolution={of.resolution}: must be more than 0")
    for key in ("iterations", "starts"):
        if getattr(of, key) < 1:
            raise ValueError(f"interaction_basis.modularity.{key}={getattr(of, key)}: must be 1 or more")


def _check_dictionaries(config: Config, name: str, given: set[str]) -> None:
    """Saved SAEs: folders that are some, and how they are looked at."""
    assert config.interaction_basis is not None
    if name != "dictionaries":
        if config.interaction_basis.saes is not None:
            raise ValueError(f"interaction_basis.saes has no meaning for experiment=interaction_basis/{name}")
        return
    for folder in config.interaction_basis.saes or []:
        if not (Path(folder) / "cfg.json").is_file():
            raise ValueError(f"interaction_basis.saes: {folder} is not an SAE folder, there is no cfg.json in it")
    of = config.interaction_basis.dictionaries
    assert of is not None
    if not 0 <= of.left_out < 1:
        raise ValueError(f"interaction_basis.dictionaries.left_out={of.left_out}: must be from 0 up to but not 1")
    if of.tokens < 1024:
        raise ValueError(f"interaction_basis.dictionaries.tokens={of.tokens}: must be 1024 or more")
    if "interaction_basis.dictionaries.tokens" in given and not config.interaction_basis.saes:
        raise ValueError("interaction_basis.dictionaries.tokens: is for saved SAEs, which interaction_basis.saes names")


def check_addition_folder(path: str) -> None:
    """ValueError unless a trained modular-addition network with whole weights lies there."""
    if (folder := addition_folder(Path(path))) is None:
        raise ValueError(
            f"model.path={path}: no trained modular-addition network there; give the run folder of "
            "experiment=interaction_basis/modular_addition_training"
        )
    check_weights(folder)


def of_addition(config: Config) -> bool:
    """Whether `model.path` of an experiment on degeneracy or bases is a trained modular-addition network."""
    path = config.model.path
    return config.task.named and path is not None and addition_folder(Path(path)) is not None
