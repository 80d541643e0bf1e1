"""What can be wrong with a configuration that types do not catch; answers before torch is imported."""

import os
import socket
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlparse

import yaml

from crux.config.errors import UserError
from crux.config.schema import ROOT, Config, Sae, Strategy, Task, to_plain
from crux.degeneracy.checks import check_bases_fit, check_degeneracy, check_hook_points, of_addition
from crux.llc.checks import check_llc
from crux.runs.run_folder import find_unfinished, named_unfinished
from crux.sae.many import alone, check_many
from crux.sae.sites import check_places
from crux.subjects.shape import read_shape
from crux.subjects.source import find_folder
from crux.subjects.weight_files import check_weights
from crux.text.paths import check_path
from crux.toy.checks import check_toy, check_toy_numbers, check_toy_subject, of_toy_model

STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""What MLflow keeps runs in."""


def check(config: Config, overrides: list[str]) -> None:
    """Raises a one-line UserError for the first thing that cannot work.

    `overrides` are the command line's, to tell a hook point that was given from one that follows the layer.
    """
    given = {o.lstrip("+~").partition("=")[0] for o in overrides}
    if config.task is Task.toy:
        check_toy(config, given)
    elif config.task is Task.llc:
        check_llc(config, given)
        if config.toy is not None:
            check_toy_numbers(config.toy)
    elif config.task.named:
        check_degeneracy(config, given)
    if {"layer", "hook_point"} <= given:
        raise UserError("layer and hook_point both given: hook_point names the place in full, give one of them")
    if config.hook_points is not None and (one := sorted(given & {"layer", "hook_point"})):
        raise UserError(f"hook_points and {one[0]} both given: give one of them")
    if "gradient.target" in given and config.sae.beta is None:
        raise UserError(f"gradient.target: sae={config.sae.name} looks at no gradient; sae=gradient_topk does")
    if {"data.path", "data.name"} <= given:
        raise UserError("data.path and data.name both given: give one of them")
    check_many(config, given)
    for one in alone(config).values() or (config,):
        _numbers(one)
    _devices(config)
    _writable("output_dir", config.output_dir)
    if config.cache is not None:
        _writable("cache", config.cache)
    if config.sae.start_from is not None and not (Path(config.sae.start_from) / "cfg.json").is_file():
        raise UserError(f"sae.start_from={config.sae.start_from}: not an SAE folder, there is no cfg.json in it")
    if config.data.path is not None:
        try:
            check_path(Path(config.data.path), column=config.data.column, min_tokens=2 * config.model.context)
        except UserError as error:
            raise UserError(f"data.path: {error}") from error
    if "experiment=toy/sae" in overrides and not of_toy_model(config):
        raise UserError(
            f"experiment=toy/sae: model.path={config.model.path} must be the run folder of a toy experiment"
        )
    if config.task is Task.train and of_toy_model(config):
        check_toy_subject(config, given)
    elif config.task is Task.train:
        source = model_source(config)
        on_disk = source == "tiny" or isinstance(source, Path)
        shape = read_shape(find_folder(source)) if on_disk else None
        for one in alone(config).values() or (config,):
            check_places(one, shape, hook_given="hook_point" in given)
    if config.tracking.mlflow:
        check_tracking(config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    if config.resume and config.resume_from is not None:
        raise UserError("resume and resume_from both given: give one of them")
    _resume(config)


def _numbers(config: Config) -> None:
    def at_least(key: str, value: float | None, least: float) -> None:
        if value is not None and not value >= least:
            raise UserError(f"{key}={value}: must be {least:g} or more")

    at_least("sparsity", config.sparsity, 0)
    at_least("seed", config.seed, 0)
    for key in ("max_steps", "batch", "accumulate", "log_every", "checkpoint_every"):
        at_least(f"trainer.{key}", getattr(config.trainer, key), 1)
    at_least("trainer.val_every", config.trainer.val_every, 0)
    for key in ("reconstruction", "kl", "downstream", "fisher", "finetune_share", "max_norm"):
        at_least(f"loss.{key}", getattr(config.loss, key), 0)
    _terms(config)
    _options(config)
    for key, least in (("k", 1), ("beta", 0), ("prefix_coefficient", 0), ("p_updates", 1)):
        at_least(f"sae.{key}", getattr(config.sae, key), least)
    at_least("sae.auxk.coefficient", config.sae.auxk.coefficient, 0)
    at_least("sae.auxk.k", config.sae.auxk.k, 1)
    at_least("sae.auxk.dead_after", config.sae.auxk.dead_after, 0)
    at_least("evaluation.latents", config.evaluation.latents, 0)
    at_least("evaluation.alive_window", config.evaluation.alive_window, 1)
    for key in ("tokens", "val_tokens"):
        at_least(f"evaluation.{key}", getattr(config.evaluation, key), config.model.context)
    at_least("model.context", config.model.context, 2)
    at_least("data.max_tokens", config.data.max_tokens, 1)
    at_least("data.shuffle_batches", config.data.shuffle_batches, 1)
    at_least("optimizer.warmup_steps", config.optimizer.warmup_steps, 0)
    at_least("optimizer.weight_decay", config.optimizer.weight_decay, 0)
    at_least("data.held_out_tokens", config.data.held_out_tokens, 1)
    for key in ("init_norm", "threshold", "bandwidth", "threshold_rate", "p_end"):
        value = getattr(config.sae, key)
        if value is not None and not value > 0:
            raise UserError(f"sae.{key}={value}: must be more than 0")
    for key in ("p_end", "p_start", "p_stop"):
        value = getattr(config.sae, key)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"sae.{key}={value}: must be from 0 to 1")
    if config.sae.p_end == 1:
        raise UserError("sae.p_end=1.0: must be less than 1, which is where p begins")
    if config.sae.p_start is not None and config.sae.p_stop is not None and config.sae.p_start >= config.sae.p_stop:
        raise UserError(f"sae.p_start={config.sae.p_start}: must be less than sae.p_stop={config.sae.p_stop}")
    prefixes = config.sae.prefixes or []
    if not all(a < b for a, b in pairwise([0.0, *prefixes, 1.0])):
        raise UserError(f"sae.prefixes={prefixes}: must be rising shares of the dictionary, between 0 and 1")
    _sparsity(config)
    for key in ("lr", "clip", "eps"):
        if not getattr(config.optimizer, key) > 0:
            raise UserError(f"optimizer.{key}={getattr(config.optimizer, key)}: must be more than 0")
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.betas={betas}: must be two numbers, each from 0 up to but not 1")
    if not 0 <= config.optimizer.min_lr_factor <= 1:
        raise UserError(f"optimizer.min_lr_factor={config.optimizer.min_lr_factor}: must be from 0 to 1")
    if config.trainer.accelerator not in ("auto", "cpu", "cuda"):
        raise UserError(f"trainer.accelerator={config.trainer.accelerator}: allowed are auto, cpu, cuda")
    if config.sae.n_latents is not None:
        at_least("sae.n_latents", config.sae.n_latents, 1)
    elif config.sae.ratio is None:
        raise UserError("sae.ratio and sae.n_latents are both null: an SAE needs one of them")
    skipped = [p for p in config.loss.skip_positions if not 0 <= p < config.model.context]
    if skipped:
        raise UserError(
            f"loss.skip_positions: {skipped} are not positions of a context of {config.model.context} tokens"
        )


def _devices(config: Config) -> None:
    """Several devices are for one training run, each with an equal share of the batch."""
    trainer = config.trainer
    if trainer.devices is not None and trainer.devices < 1:
        raise UserError(f"trainer.devices={trainer.devices}: must be 1 or more")
    if trainer.strategy is Strategy.single:
        if trainer.devices != 1:
            raise UserError(
                f"trainer.devices={trainer.devices}: several devices share a run under trainer=ddp, say that too"
            )
        return
    if config.task is not Task.train:
        raise UserError(f"trainer=ddp trains SAEs; experiments that {config.task.value} run on one device")
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        raise UserError(
            "trainer=ddp starts its processes itself: run it once, without torchrun and as one task of srun"
        )
    if trainer.accelerator == "cpu" and trainer.devices is None:
        raise UserError("trainer.devices=null: on the CPU, say over how many processes, such as trainer.devices=2")
    if trainer.devices is not None:
        check_shares(config, trainer.devices)


def check_shares(config: Config, devices: int) -> None:
    """Every device's mean must weigh the same in the batch's."""
    if devices == 1:
        return
    if config.trainer.batch % devices:
        raise UserError(
            f"trainer.batch={config.trainer.batch}: the sequences of all {devices} devices together, must be a multiple of {devices}"
        )
    if config.loss.max_norm is not None:
        raise UserError(
            "loss.max_norm leaves out more tokens on one device than on another, whose means would not make the batch's; "
            "it goes with one device"
        )


OPTIONS = [f.name for f in fields(Sae)][[f.name for f in fields(Sae)].index("start_from") + 1 :]
"""Keys of single architectures."""


def _options(config: Config) -> None:
    """An architecture's options have values, and others' options have none."""
    known = _declared(config.sae.name)
    for key in OPTIONS:
        value = getattr(config.sae, key)
        if key in known and value is None:
            raise UserError(f"sae.{key}=null: sae={config.sae.name} needs a value")
        if key not in known and value is not None:
            own = ", ".join(f"sae.{k}" for k in OPTIONS if k in known) or "none"
            raise UserError(f"sae.{key}={value}: sae={config.sae.name} has no such option; its own are {own}")


def _declared(name: str) -> set[str]:
    """The keys in conf/sae/<name>.yaml and its parents."""
    path = ROOT / "conf" / "sae" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"sae.name={name}: there is no {path.name} in conf/sae; choose an architecture by sae=…")
    options = yaml.safe_load(path.read_text("utf-8"))
    parents = [parent for parent in options["defaults"] if parent != "schema"]
    return set(options).union(*(_declared(parent) for parent in parents))


def _terms(config: Config) -> None:
    """The loss's terms must make one loss."""
    loss = config.loss
    behind = loss.kl > 0 or loss.downstream > 0
    if loss.reconstruction == loss.kl == loss.downstream == loss.fisher == 0:
        raise UserError(f"loss={loss.name}: all of its coefficients are 0, there is nothing to train for")
    if loss.finetune_share > 0 and loss.reconstruction == 0:
        raise UserError("loss.finetune_share weighs the KL against the MSE: loss.reconstruction must be more than 0")
    if loss.block_diagonal and loss.fisher == 0:
        raise UserError("loss.block_diagonal is a form of the Fisher term: loss.fisher must be more than 0")
    out = loss.max_norm is not None or (loss.skip_positions and (behind or loss.fisher > 0 or loss.finetune_share > 0))
    if config.sae.name in ("batch_topk", "matryoshka") and out:
        raise UserError(
            f"sae={config.sae.name} chooses over the whole batch, so no token of it can be left out of the loss: "
            "loss.max_norm must be null, and loss.skip_positions empty unless the loss is local"
        )
    if loss.finetune_share > 1:
        raise UserError(f"loss.finetune_share={loss.finetune_share}: must be from 0 to 1")
    for key in ("fisher", "finetune_share"):
        if getattr(loss, key) > 0 and behind:
            raise UserError(f"loss.{key} goes with a local loss: loss.kl and loss.downstream must be 0")
    if loss.fisher > 0 and loss.finetune_share > 0:
        raise UserError("loss.fisher and loss.finetune_share both given: give one of them")


def _sparsity(config: Config) -> None:
    """λ and its target, against what the architecture can do."""
    k, wanted = config.sae.k, config.target_l0
    if k is not None and config.sparsity != 0:
        raise UserError(f"sparsity={config.sparsity:g}: sae={config.sae.name} fixes L0 by sae.k={k} and has no λ")
    if wanted is None:
        return
    if k is not None:
        raise UserError(f"target_l0={wanted:g}: sae={config.sae.name} fixes L0 by sae.k; say sae.k={wanted:g}")
    if not wanted > 0:
        raise UserError(f"target_l0={wanted:g}: must be more than 0")
    if not config.sparsity > 0:
        raise UserError("target_l0 steers λ from where sparsity starts it: sparsity must be more than 0")


def model_source(config: Config) -> str | Path:
    """The subject's folder where one is given, else its name."""
    return Path(config.model.path) if config.model.path is not None else config.model.name


def check_model(config: Config) -> None:
    """The subject must be within reach and whole, and the configuration must fit it; a hub model is fetched for that.

    Raises:
        UserError: no such folder, no hub within reach, config.json or weights missing or broken, no such place in it.
    """
    if of_toy_model(config) or of_addition(config):
        return
    folder = find_folder(model_source(config))
    shape = read_shape(folder)
    check_weights(folder)
    if config.task is Task.interaction_basis:
        check_bases_fit(config, shape)
        return
    if config.task.named:
        check_hook_points(config, shape)
        return
    for one in alone(config).values() or (config,):
        check_places(one, shape, hook_given=config.hook_point != f"blocks.{config.layer}.hook_resid_pre")


def _writable(key: str, place: str) -> None:
    folder = Path(place)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{key}={place}: {folder} is a file; a folder is needed")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{key}={place}: {folder} cannot be written to")


def _resume(config: Config) -> None:
    plain = to_plain(config)
    if config.resume_from is not None:
        named_unfinished(Path(config.resume_from), plain)
    elif config.resume:
        find_unfinished(Path(config.output_dir), plain)


def check_tracking(uri: str | None) -> None:
    """A tracking server must answer its port within a second: MLflow's own client would retry for minutes."""
    if uri is None:
        return
    if urlparse(uri).scheme.partition("+")[0] not in STORES:
        raise UserError(f"tracking.uri={uri}: allowed are {', '.join(STORES)}, each with ://…; or say tracking=none")
    if not uri.startswith(("http://", "https://")):
        return
    address = urlparse(uri)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=1.0).close()
    except OSError as error:
        raise UserError(
            f"the tracking server {uri} does not answer ({error}); start it, or say tracking=none"
        ) from None
