"""What can be wrong with an experiment on learning coefficients; answers before torch is imported."""

from crux.config.errors import UserError
from crux.config.keys import ALWAYS, refuse_others
from crux.config.schema import Config, experiment_name
from crux.llc.options import Llc, LlcExperiment

TRAINING = (
    "optimizer", "trainer.max_steps", "trainer.batch", "trainer.log_every", "trainer.checkpoint_every", "trainer.accelerator",
)  # fmt: skip

BESIDE: dict[str, tuple[str, ...]] = {
    "llc/toy_training": ("toy", "model.path", "model.instance", *TRAINING),
    "llc/sae_training": (
        "sae",
        "sparsity",
        "model.path",
        "model.instance",
        *(key for key in TRAINING if key != "trainer.batch"),
    ),
    "llc/language_model": ("model", "data", "cache", "trainer.accelerator"),
}
"""What an experiment reads beside the keys of its own group."""

SAMPLING = ("sampler", "leapfrogs", "whitened", "chains", "burn_in", "draws", "every", "nbetas", "gamma", "step_size")

READS: dict[LlcExperiment, tuple[str, ...]] = {
    LlcExperiment.calibrate: ("cases", "length"),
    LlcExperiment.speed: (),
    LlcExperiment.kgon: (*SAMPLING, "corners", "plus", "features"),
    LlcExperiment.linear: (*SAMPLING, "widths", "ranks"),
    LlcExperiment.behavioural: (*SAMPLING, "behaviours", "hidden", "samples"),
    LlcExperiment.toy_training: (*SAMPLING, "checkpoints", "samples"),
    LlcExperiment.sae_training: (*SAMPLING, "checkpoints", "samples"),
    LlcExperiment.language_model: (
        *SAMPLING, "samples", "parameters", "minibatch", "gradient_text", "evaluation_text",
    ),
}  # fmt: skip
"""Keys of the group llc that each experiment reads."""


def check_llc(config: Config, given: set[str]) -> None:
    """Keys of such an experiment: those that have a meaning there, with values that can be."""
    named = "/".join(experiment_name(config))
    refuse_others(given, ("llc", *ALWAYS, *BESIDE.get(named, ())), experiment=named)
    assert config.llc is not None
    _check_keys(config.llc, given)


def _check_keys(llc: Llc, given: set[str]) -> None:
    reads = READS[llc.experiment]
    for key in sorted(given):
        name = key.partition("llc.")[2]
        if key.startswith("llc.") and name not in ("experiment", *reads):
            allowed = ", ".join(f"llc.{read}" for read in reads) or "none"
            raise UserError(
                f"{key} has no meaning for experiment=llc/{llc.experiment.value}; of llc, it reads {allowed}"
            )
    if llc.length is not None and not llc.length > 0:
        raise UserError(f"llc.length={llc.length}: must be more than 0")
    if llc.cases is not None and not llc.cases:
        raise UserError("llc.cases=[]: must name one or more of regular, monomials, linear_networks, kgons, escape")
    optional = ("gamma", "step_size", "features", "minibatch", "leapfrogs")
    for key in reads:
        if getattr(llc, key) is None and key not in optional:
            raise UserError(f"llc.{key}=null: must have a value for experiment=llc/{llc.experiment.value}")
    least = {
        "leapfrogs": 1, "chains": 1, "burn_in": 1, "draws": 4, "every": 1, "gamma": 0, "plus": 0, "checkpoints": 1, "samples": 1,
        "minibatch": 1,
    }  # fmt: skip
    for key, value in least.items():
        found = getattr(llc, key)
        if found is not None and not found >= value:
            raise UserError(f"llc.{key}={found}: must be {value} or more")
    if llc.nbetas is not None and (not llc.nbetas or not all(nbeta > 0 for nbeta in llc.nbetas)):
        raise UserError(f"llc.nbetas={llc.nbetas}: must be numbers above 0")
    if llc.step_size is not None and not llc.step_size > 0:
        raise UserError(f"llc.step_size={llc.step_size}: must be more than 0")
    if llc.hidden is not None and (not llc.hidden or min(llc.hidden) < 1):
        raise UserError(f"llc.hidden={llc.hidden}: must be widths of 1 or more")
    if llc.behaviours is not None and not llc.behaviours:
        raise UserError("llc.behaviours=[]: must name one or both of mse, kl")
    if llc.parameters is not None and not llc.parameters:
        raise UserError("llc.parameters=[]: must name one or more parameters, such as transformer.h.7.mlp.*")
    match llc.experiment:
        case LlcExperiment.kgon:
            _check_kgons(llc)
        case LlcExperiment.linear:
            _check_networks(llc)
        case _:
            pass


def _check_kgons(llc: Llc) -> None:
    assert llc.corners is not None
    assert llc.plus is not None
    if not llc.corners or not all(5 <= k <= 8 for k in llc.corners):
        raise UserError(f"llc.corners={llc.corners}: k-gons with a known learning coefficient have 5 to 8 corners")
    needed = max(llc.corners) + llc.plus
    if llc.features is not None and llc.features < needed:
        raise UserError(
            f"llc.features={llc.features}: {needed} are corners or alive (llc.corners, llc.plus); must be so many or more"
        )


def _check_networks(llc: Llc) -> None:
    assert llc.widths is not None
    assert llc.ranks is not None
    if not llc.widths or len(llc.widths) != len(llc.ranks):
        raise UserError(f"llc.ranks={llc.ranks}: must be one for each of the {len(llc.widths)} networks of llc.widths")
    for widths, rank in zip(llc.widths, llc.ranks, strict=True):
        if len(widths) < 2 or min(widths) < 1:
            raise UserError(f"llc.widths: {widths} must be two widths or more, each 1 or more")
        if not 0 <= rank <= min(widths):
            raise UserError(f"llc.ranks: a network of widths {widths} has rank 0 to {min(widths)}, not {rank}")
