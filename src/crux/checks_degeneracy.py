"""What can be wrong with an experiment on learning coefficients, degeneracy or bases; answers before torch is imported."""

import itertools
from pathlib import Path

from crux.keys import refuse_others
from crux.schema import Config, Task, experiment_name
from crux.schema_degeneracy import Network
from crux.subjects.addition_folder import addition_folder
from crux.subjects.hooks import check_hook
from crux.subjects.shape import Shape
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
    "degeneracy/spectra": (
        "model",
        "model.path",
        "model.process_weights",
        "model.context",
        "hook_points",
        "data.path",
        "cache",
    ),
    "degeneracy/synchronised": ("model.path",),
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
        case Task.degeneracy:
            _check_measures(config, given, name)
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
    if of is None:
        raise ValueError("interaction_basis.addition is missing: interaction_basis=addition says p and sizes")
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


def _check_measures(config: Config, given: set[str], name: str) -> None:
    """Spectra and synchronised neurons."""
    of = config.degeneracy
    assert of is not None
    if not of.thresholds or not all(0 < threshold < 1 for threshold in of.thresholds):
        raise ValueError(f"degeneracy.thresholds={of.thresholds}: must be numbers above 0 and below 1")
    for key in ("sequences", "steps"):
        if getattr(of, key) < 1:
            raise ValueError(f"degeneracy.{key}={getattr(of, key)}: must be 1 or more")
    if not of.hidden or min(of.hidden) < 1:
        raise ValueError(f"degeneracy.hidden={of.hidden}: must be one width or more, each 1 or more")
    if of_addition(config):
        check_addition_folder(str(config.model.path))
    if name == "synchronised":
        if config.model.path is not None and not of_addition(config):
            raise ValueError(
                f"model.path={config.model.path}: only ReLU neurons can be synchronised; allowed is the run folder of "
                "experiment=interaction_basis/modular_addition_training, or no model.path: a perceptron is trained"
            )
        if config.model.path is None and of.network is Network.model:
            raise ValueError("degeneracy.network=model: say which by model.path; degeneracy.network=mlp trains one")
    elif of.network is Network.mlp and (
        own := sorted(key for key in given if key.startswith(("model", "hook", "data")))
    ):
        raise ValueError(f"{own[0]} has no meaning for degeneracy.network=mlp, a perceptron that the experiment trains")
    elif of_addition(config) and config.hook_points is not None:
        raise ValueError("hook_points: of a modular-addition network, the MLP's own hook points are looked at")


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


def check_hook_points(config: Config, shape: Shape) -> None:
    """The hook points that a language model is looked at: they exist, two or more, each behind the one before it.

    Raises:
        ValueError: in one line, otherwise.
    """
    if config.model.context > shape.n_ctx:
        raise ValueError(f"model.context={config.model.context}: the model's context has {shape.n_ctx} tokens")
    if config.hook_points is None:
        return
    found = [check_hook(name, n_layers=shape.n_layers, resid_mid=shape.resid_mid) for name in config.hook_points]
    if len(found) < 2:
        raise ValueError(
            f"hook_points={config.hook_points}: two or more are needed, activations go from one to the next"
        )
    for a, b in itertools.pairwise(found):
        if a.order >= b.order:
            raise ValueError(f"hook_points: {b.name} does not lie behind {a.name} in the network")
