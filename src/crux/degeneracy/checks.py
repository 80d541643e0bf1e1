"""What can be wrong with an experiment on degeneracy or interaction bases; answers before torch is imported."""

from itertools import pairwise
from pathlib import Path

from crux.config.errors import UserError
from crux.config.keys import ALWAYS, refuse_others
from crux.config.schema import Config, Task, experiment_name
from crux.degeneracy.networks.addition_folder import addition_folder
from crux.degeneracy.options import BASES, BasisExperiment, Compare, LastBasis, Network
from crux.subjects.hooks import FINAL, check_hook, hook_names
from crux.subjects.shape import Shape
from crux.subjects.weight_files import check_weights

TRAINING = (
    "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer.weight_decay", "optimizer.warmup_steps",
    "optimizer.min_lr_factor", "trainer.max_steps", "trainer.log_every", "trainer.checkpoint_every", "trainer.accelerator",
)  # fmt: skip
"""What has a meaning where an experiment trains its network."""

OWN = {
    "interaction_basis/modular_addition": ("model.path", *TRAINING),
    "interaction_basis/modular_addition_training": TRAINING,
    "interaction_basis/tiny": ("model.path", "model.process_weights", "data", "cache", "trainer.accelerator"),
    "interaction_basis/gpt2": ("model", "data", "cache", "trainer.accelerator"),
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
        case Task.interaction_basis:
            _check_addition(config, name)
            _check_modularity(config)
            _check_dictionaries(config, name, given)
            _check_compare(config)
        case Task.degeneracy:
            _check_measures(config, given, name)
        case _:
            pass


def _check_addition(config: Config, name: str) -> None:
    """The modular-addition network: the folder that it is read from, or the sizes that it is trained with."""
    if not name.startswith("modular_addition"):
        return
    if config.model.path is not None:
        check_addition_folder(config.model.path)
    of = config.interaction_basis and config.interaction_basis.addition
    if of is None:
        raise UserError("interaction_basis.addition is missing: interaction_basis=addition says p and sizes")
    for key in ("p", "d_model", "n_heads", "d_mlp"):
        if getattr(of, key) < 1:
            raise UserError(f"interaction_basis.addition.{key}={getattr(of, key)}: must be 1 or more")
    if of.d_model % of.n_heads:
        raise UserError(
            f"interaction_basis.addition.d_model={of.d_model}: must be a multiple of the {of.n_heads} heads"
        )
    if not 0 < of.train_share < 1 or int(of.train_share * of.p**2) < 1:
        raise UserError(
            f"interaction_basis.addition.train_share={of.train_share}: must be a share of the {of.p**2} pairs, between 0 and 1"
        )


def _check_measures(config: Config, given: set[str], name: str) -> None:
    """Spectra and synchronised neurons."""
    of = config.degeneracy
    assert of is not None
    if not of.thresholds or not all(0 < threshold < 1 for threshold in of.thresholds):
        raise UserError(f"degeneracy.thresholds={of.thresholds}: must be numbers above 0 and below 1")
    for key in ("sequences", "steps"):
        if getattr(of, key) < 1:
            raise UserError(f"degeneracy.{key}={getattr(of, key)}: must be 1 or more")
    if not of.hidden or min(of.hidden) < 1:
        raise UserError(f"degeneracy.hidden={of.hidden}: must be one width or more, each 1 or more")
    if of_addition(config):
        check_addition_folder(str(config.model.path))
    if name == "synchronised":
        if config.model.path is not None and not of_addition(config):
            raise UserError(
                f"model.path={config.model.path}: only ReLU neurons can be synchronised; allowed is the run folder of "
                "experiment=interaction_basis/modular_addition_training, or no model.path: a perceptron is trained"
            )
        if config.model.path is None and of.network is Network.model:
            raise UserError("degeneracy.network=model: say which by model.path; degeneracy.network=mlp trains one")
    elif of.network is Network.mlp and (
        own := sorted(key for key in given if key.startswith(("model", "hook", "data")))
    ):
        raise UserError(f"{own[0]} has no meaning for degeneracy.network=mlp, a perceptron that the experiment trains")
    elif of_addition(config) and config.hook_points is not None:
        raise UserError("hook_points: of a modular-addition network, the MLP's own hook points are looked at")


def _check_modularity(config: Config) -> None:
    """How modules are looked for, where an experiment looks for them."""
    of = config.interaction_basis and config.interaction_basis.modularity
    if of is None:
        return
    if not of.resolution > 0:
        raise UserError(f"interaction_basis.modularity.resolution={of.resolution}: must be more than 0")
    for key in ("iterations", "starts"):
        if getattr(of, key) < 1:
            raise UserError(f"interaction_basis.modularity.{key}={getattr(of, key)}: must be 1 or more")


def _check_dictionaries(config: Config, name: str, given: set[str]) -> None:
    """Saved SAEs: folders that are some, and how they are looked at."""
    assert config.interaction_basis is not None
    if name != "dictionaries":
        if config.interaction_basis.saes is not None:
            raise UserError(f"interaction_basis.saes has no meaning for experiment=interaction_basis/{name}")
        return
    for folder in config.interaction_basis.saes or []:
        if not (Path(folder) / "cfg.json").is_file():
            raise UserError(f"interaction_basis.saes: {folder} is not an SAE folder, there is no cfg.json in it")
    of = config.interaction_basis.dictionaries
    assert of is not None
    if not 0 <= of.left_out < 1:
        raise UserError(f"interaction_basis.dictionaries.left_out={of.left_out}: must be from 0 up to but not 1")
    if of.tokens < 1024:
        raise UserError(f"interaction_basis.dictionaries.tokens={of.tokens}: must be 1024 or more")
    if "interaction_basis.dictionaries.tokens" in given and not config.interaction_basis.saes:
        raise UserError("interaction_basis.dictionaries.tokens: is for saved SAEs, which interaction_basis.saes names")


def check_addition_folder(path: str) -> None:
    """UserError unless a trained modular-addition network with whole weights lies there."""
    if (folder := addition_folder(Path(path))) is None:
        raise UserError(
            f"model.path={path}: no trained modular-addition network there; give the run folder of "
            "experiment=interaction_basis/modular_addition_training"
        )
    check_weights(folder)


def of_addition(config: Config) -> bool:
    """Whether `model.path` of an experiment on degeneracy or bases is a trained modular-addition network."""
    path = config.model.path
    return config.task.named and path is not None and addition_folder(Path(path)) is not None


def _check_compare(config: Config) -> None:
    """Numbers and names of a comparison of bases; its hook points are checked where the network is known."""
    of = config.interaction_basis and config.interaction_basis.compare
    if not of:
        return
    key = "interaction_basis.compare"
    if len(of.hooks) < 2:
        raise UserError(f"{key}.hooks={of.hooks}: must name two hook points or more")
    for name, wanted in (("bases", of.bases), ("edge_ablation", of.edge_ablation)):
        allowed = BASES if name == "bases" else (*of.bases, "sae")
        if other := [kind for kind in wanted if kind not in allowed]:
            raise UserError(f"{key}.{name}: there is no {other[0]}; allowed are {', '.join(allowed)}")
        if len(set(wanted)) < len(wanted):
            raise UserError(f"{key}.{name}={wanted}: name each once")
    if not of.bases:
        raise UserError(f"{key}.bases=[]: must name one or more of {', '.join(BASES)}")
    if "next" in of.bases and of.ahead is None:
        raise UserError(f"{key}.ahead=null: the next-k basis needs to know how many hook points it looks ahead")
    for name in ("ahead", "probes", "points", "samples", "judged", "batch", "directions", "edge_samples"):
        value = getattr(of, name)
        if value is not None and value < 1:
            raise UserError(f"{key}.{name}={value}: must be 1 or more")
    if not 0 < of.threshold < 1:
        raise UserError(f"{key}.threshold={of.threshold:g}: must be between 0 and 1")
    if not of.within > 0:
        raise UserError(f"{key}.within={of.within:g}: must be more than 0")
    _check_texts(of, _of_language(config))
    perceptron = config.interaction_basis and config.interaction_basis.perceptron
    if perceptron and (not perceptron.hidden or min(perceptron.hidden) < 1):
        raise UserError(f"interaction_basis.perceptron.hidden={perceptron.hidden}: must be widths of 1 or more")
    if perceptron and not (perceptron.steps >= 1 and perceptron.lr > 0):
        raise UserError("interaction_basis.perceptron: steps must be 1 or more, lr more than 0")


def _of_language(config: Config) -> bool:
    """Whether a comparison of bases is on a language model."""
    experiment = config.interaction_basis and config.interaction_basis.experiment
    return experiment in (BasisExperiment.tiny, BasisExperiment.gpt2)


def _check_texts(of: Compare, language: bool) -> None:
    """What only a language model has."""
    key = "interaction_basis.compare"
    if language and (of.length is None or of.length < 2):
        raise UserError(f"{key}.length={of.length}: must be 2 tokens or more")
    if not language and of.length is not None:
        raise UserError(f"{key}.length has no meaning but for language models")
    if not language and of.saes:
        raise UserError(f"{key}.saes has no meaning but for language models")
    if not language and of.last is LastBasis.logits:
        raise UserError(f"{key}.last=logits has no meaning but for language models; allowed are pca, neuron")
    if of.last is LastBasis.logits and of.hooks[-1] != FINAL:
        raise UserError(f"{key}.last=logits: the last hook point must be {FINAL}, which the logits are read from")


def check_bases_fit(config: Config, shape: Shape) -> None:
    """Hook points and length of a comparison of bases must fit the language model, where it is one."""
    of = config.interaction_basis and config.interaction_basis.compare
    if not of or not _of_language(config):
        return
    names = [*hook_names(shape.n_layers, resid_mid=shape.resid_mid), FINAL]
    for hook in of.hooks:
        if hook != FINAL:
            check_hook(hook, n_layers=shape.n_layers, resid_mid=shape.resid_mid)
    for a, b in pairwise(of.hooks):
        if names.index(a) >= names.index(b):
            raise UserError(
                f"interaction_basis.compare.hooks: {a}, {b} are out of order; name each once, in the network's order"
            )
    if of.length is not None and of.length > shape.n_ctx:
        raise UserError(f"interaction_basis.compare.length={of.length}: the model's context has {shape.n_ctx} tokens")


def check_hook_points(config: Config, shape: Shape) -> None:
    """The hook points that a language model is looked at: they exist, two or more, each behind the one before it.

    Raises:
        UserError: in one line, otherwise.
    """
    if config.model.context > shape.n_ctx:
        raise UserError(f"model.context={config.model.context}: the model's context has {shape.n_ctx} tokens")
    if config.hook_points is None:
        return
    found = [check_hook(name, n_layers=shape.n_layers, resid_mid=shape.resid_mid) for name in config.hook_points]
    if len(found) < 2:
        raise UserError(
            f"hook_points={config.hook_points}: two or more are needed, activations go from one to the next"
        )
    for a, b in pairwise(found):
        if a.order >= b.order:
            raise UserError(f"hook_points: {b.name} does not lie behind {a.name} in the network")
