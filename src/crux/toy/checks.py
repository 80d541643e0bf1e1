"""What can be wrong with a configuration that is about toy models; answers before torch is imported."""

from pathlib import Path

from crux.config.errors import UserError
from crux.config.keys import refuse_others
from crux.config.schema import HERE, ROOT, Config, Strategy
from crux.toy.folder import HOOK, n_hidden, n_instances, toy_folder
from crux.toy.options import Together, Toy

TOY_KEYS = (
    "toy", "experiment", "seed", "resume", "resume_from", "retry_failed", "output_dir", "sweep_name", "tracking", "debug",
    "optimizer.lr", "optimizer.betas", "optimizer.eps", "optimizer.weight_decay", "optimizer.warmup_steps",
    "optimizer.min_lr_factor", "trainer.max_steps", "trainer.batch", "trainer.accelerator", "trainer.log_every",
    "trainer.checkpoint_every", "trainer.progress",
)  # fmt: skip
"""What has a meaning for experiments with toy models."""

SEVERAL_SIZES = ("phase_diagram", "correlated")
"""Those that train models of several sizes."""


def check_toy(config: Config, given: set[str]) -> None:
    """Keys of a toy experiment: those that have a meaning there, with values that can be."""
    toy = config.toy
    if toy is None:
        raise UserError("task=toy: choose an experiment, experiment=toy/…")
    refuse_others(given, TOY_KEYS, experiment=f"toy/{toy.experiment}")
    code, options = HERE / "toy" / "experiments", ROOT / "conf" / "experiment" / "toy"
    if not all(
        (folder / name).is_file()
        for folder, name in ((code, f"{toy.experiment}.py"), (options, f"{toy.experiment}.yaml"))
    ):
        raise UserError(f"toy.experiment={toy.experiment}: no such experiment; choose one by experiment=toy/…")
    check_toy_numbers(toy)
    _sizes(toy, given)


def check_toy_numbers(toy: Toy) -> None:
    """Whatever is trained with them. Raises UserError."""
    least = {"n_features": 1, "n_hidden": 1, "n_sets": 1, "seeds": 1, "held_out": 1, "snapshots": 0, "tile": 1}
    for key, value in least.items():
        if getattr(toy, key) < value:
            raise UserError(f"toy.{key}={getattr(toy, key)}: must be {value} or more")
    for key in ("importance", "init_scale"):
        if not getattr(toy, key) > 0:
            raise UserError(f"toy.{key}={getattr(toy, key)}: must be more than 0")
    if not toy.densities or not all(0 < p <= 1 for p in toy.densities):
        raise UserError(f"toy.densities={toy.densities}: must be numbers above 0, up to 1")
    if toy.n_features % toy.n_sets:
        raise UserError(f"toy.n_sets={toy.n_sets}: {toy.n_features} features cannot be so many equal sets")
    if toy.together is Together.anticorrelated and max(toy.densities) * toy.n_features / toy.n_sets > 1:
        most = toy.n_sets / toy.n_features
        raise UserError(
            f"toy.densities={toy.densities}: of {toy.n_features // toy.n_sets} features that exclude each other each has "
            f"a density of {most:g} at most"
        )
    for key in ("ratios", "points"):
        values = getattr(toy, key)
        if values is not None and (not values or not all(value > 0 for value in values)):
            raise UserError(f"toy.{key}={values}: must be numbers above 0")
    if toy.held_out % min(toy.held_out, 1024):
        raise UserError(f"toy.held_out={toy.held_out}: must be a multiple of 1024, or less")


def _sizes(toy: Toy, given: set[str]) -> None:
    """Of the experiments that train models of several sizes."""
    several = toy.experiment in SEVERAL_SIZES
    if several != (toy.sizes is not None):
        raise UserError(
            f"toy.sizes has {'to be given' if several else 'no meaning'} for experiment=toy/{toy.experiment}"
        )
    for size in toy.sizes or []:
        if len(size) != 3 or min(size) < 1 or size[0] % size[2]:
            raise UserError(f"toy.sizes: {size} must be [n_features, n_hidden, n_sets], the features in equal sets")
    for key in ("n_features", "n_hidden", "n_sets"):
        if several and f"toy.{key}" in given:
            raise UserError(f"toy.{key}: experiment=toy/{toy.experiment} trains several sizes, toy.sizes says which")


def of_toy_model(config: Config) -> bool:
    """Whether the subject is a trained toy model."""
    return config.model.path is not None and toy_folder(Path(config.model.path)) is not None


NOT_ON_TOYS = (
    "data", "layer", "hook_points", "sparsities", "ks", "cache", "model.process_weights", "model.name", "model.n_layers",
    "sae.output_hook", "gradient", "loss.skip_positions", "evaluation.latents",
)  # fmt: skip
"""What has no meaning where the subject is a toy model."""


def check_toy_subject(config: Config, given: set[str]) -> None:
    """An SAE on a toy model: its one hook point, a loss that it has, keys that mean something there.

    Raises:
        UserError: in one line, otherwise.
    """
    assert config.model.path is not None
    folder = toy_folder(Path(config.model.path))
    assert folder is not None
    for key in sorted(given):
        if any(key == known or key.startswith(f"{known}.") for known in NOT_ON_TOYS):
            raise UserError(f"{key} has no meaning where the subject is a toy model (model.path={config.model.path})")
    if "hook_point" in given and config.hook_point != HOOK:
        raise UserError(f"hook_point={config.hook_point}: a toy model has one hook point, {HOOK}")
    config.hook_point = HOOK
    if config.loss.downstream > 0:
        raise UserError(
            f"loss={config.loss.name}: a toy model has nothing between its hidden layer and its output to compare; "
            "use loss=local or loss=e2e"
        )
    if config.loss.fisher > 0 or config.loss.finetune_share > 0 or config.sae.beta is not None:
        what = f"sae={config.sae.name}" if config.sae.beta is not None else f"loss={config.loss.name}"
        raise UserError(f"{what} needs a language model's labels; on a toy model use loss=local or loss=e2e")
    if config.trainer.strategy is not Strategy.single:
        raise UserError("trainer=ddp is for language models; a toy model trains on one device")
    streams, settings = n_instances(folder)
    chosen = config.model.instance
    if chosen is not None and not 0 <= chosen < streams * settings:
        raise UserError(f"model.instance={chosen}: {folder} has {streams * settings}, 0 to {streams * settings - 1}")
    latents = config.sae.n_latents or int((config.sae.ratio or 0) * n_hidden(folder))
    if latents < 1:
        raise UserError(f"sae.ratio={config.sae.ratio:g}: gives no latents at {n_hidden(folder)} hidden units")
    for key, value in (("sae.k", config.sae.k), ("target_l0", config.target_l0)):
        if value is not None and value > latents:
            raise UserError(f"{key}={value:g}: the dictionary has {latents} latents")
