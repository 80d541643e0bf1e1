"""A job's place in MLflow, from its start to its true end."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.config.schema import Config, experiment_name, to_plain
from crux.runs.run_folder import RunFolder, find_unfinished, named_unfinished, same_run
from crux.toy.options import Toy

if TYPE_CHECKING:
    from crux.runs.mlflow import Tracker


PARENT = "mlflow.parentRunId"
"""MLflow's tag that makes a run another's child."""


def family(folder: Path) -> dict[str, str]:
    """Tags of a run whose folder lies in that of a sweep, or of a job of many runs: its parent, and the name that it has there.

    In a sweep the runs of such a job are the sweep's children. Empty where there is no parent.
    """
    for job in (folder, folder.parent):
        if (known := job.parent / "mlflow_run_id").exists():
            return {PARENT: known.read_text("utf-8").strip(), "job": job.name}
    return {}


def earlier_run(config: Config, folder: Path | None) -> RunFolder | None:
    """The unfinished run to go on with, if one is asked for; in a sweep, what its folder holds of this very job, finished or not.

    Raises:
        UserError: where the one that is asked for is not there, or is another job's.
    """
    plain = to_plain(config)
    if config.resume_from is not None:
        return named_unfinished(Path(config.resume_from), plain)
    if folder is not None:
        return same_run(folder, plain)
    return find_unfinished(Path(config.output_dir), plain) if config.resume else None


def run_name(config: Config) -> str:
    """For people: `e2e_ds L6 λ=1.5`, `gradient_topk e2e L6 k=32`, `jumprelu local L2,4 L0=30`."""
    if config.task.named:
        return " ".join(experiment_name(config))
    if config.toy is not None:
        return toy_name(config.toy)
    words = [] if config.sae.name == "relu" else [config.sae.name]
    hooks = config.hook_points if config.hook_points is not None else [config.hook_point]
    layers = [re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", hook) for hook in hooks]
    place = "L" + ",".join(layer[1] for layer in layers if layer) if all(layers) else ",".join(hooks)
    place += f"→{config.sae.output_hook}" if config.sae.output_hook is not None else ""
    for symbol, values in (("λ", config.sparsities), ("k", config.ks)):
        if values is not None:
            return " ".join([*words, config.loss.name, place, f"{symbol}={','.join(f'{v:g}' for v in values)}"])
    match config.sae.k, config.target_l0:
        case None, None:
            sparsity = f"λ={config.sparsity:g}"
        case None, target:
            sparsity = f"L0={target:g}"
        case k, _:
            sparsity = f"k={k}"
    return " ".join([*words, config.loss.name, place, sparsity])


def toy_name(toy: Toy) -> str:
    """`toy geometry relu_output 400→30`."""
    return f"toy {toy.experiment} {toy.kind.value} {toy.n_features}→{toy.n_hidden}"


def git_sha() -> str | None:
    """The commit of the checkout that this code runs from, with `-dirty` where it was changed; None outside git."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def tracking_uri(config: Config) -> str | None:
    """The server or database that was asked for; None: the default one in the outputs folder."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")


def how_to_compare(config: Config) -> str:
    """What to open, or the command to type, to see the run in MLflow."""
    from crux.runs.mlflow import database

    uri = tracking_uri(config) or database(Path(config.output_dir))
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


@contextmanager
def tracked(config: Config, folder: RunFolder, *, params: Mapping[str, object]) -> "Iterator[Tracker | None]":
    """The job's MLflow run, ended as FINISHED, FAILED or KILLED; None with tracking=none.

    A run folder that already has one goes on with it, so that a resumed run is one run. `params` are those that the configuration
    does not hold.
    """
    if not config.tracking.mlflow:
        yield None
        return
    from crux.runs.mlflow import Tracker, database

    outputs = Path(config.output_dir)
    uri = tracking_uri(config) or database(outputs)
    known, above = folder.path / "mlflow_run_id", family(folder.path)
    if known.exists():
        tracker = Tracker.go_on(uri, known.read_text("utf-8").strip(), tags=above)
    else:
        try:
            tracker = Tracker.start(
                uri,
                experiment=config.tracking.experiment,
                outputs=outputs,
                name=run_name(config),
                params={**swept(config), **params},
                tags=tags(config) | above,
            )
        except UserError:
            folder.discard_unstarted()
            raise
        write_text(known, tracker.run_id + "\n")
    try:
        yield tracker
    except BaseException as stop:
        try:
            tracker.end("KILLED" if isinstance(stop, KeyboardInterrupt | SystemExit) else "FAILED")
        except UserError as error:  # what stopped the run matters more
            print(f"crux: the run's end could not be told: {error}", file=sys.stderr)
        raise
    tracker.end("FINISHED")


def swept(config: Config) -> dict[str, object]:
    """The dozen scalars that runs are compared by; the whole configuration is an artifact."""
    if config.task.named:
        group, name = experiment_name(config)
        own = {key: value for key, value in to_plain(config)[group].items() if isinstance(value, int | float)}
        return {"experiment": f"{group}/{name}", "seed": config.seed, **own}
    if config.toy is not None:
        return {
            "experiment": f"toy/{config.toy.experiment}",
            "model": config.toy.kind.value,
            "n_features": config.toy.n_features,
            "n_hidden": config.toy.n_hidden,
            "importance": config.toy.importance,
            "seeds": config.toy.seeds,
            "seed": config.seed,
            "lr": config.optimizer.lr,
            "max_steps": config.trainer.max_steps,
            "batch": config.trainer.batch,
        }
    many = (
        config.sparsities is not None or config.ks is not None
    )  # values that the runs of such a job have, each its own
    found = {
        "loss": config.loss.name,
        "layer": config.layer if config.hook_points is None else None,
        "hook_point": ",".join(config.hook_points or [config.hook_point]),
        "sparsity": None if many else config.sparsity,
        "target_l0": config.target_l0,
        "k": None if many else config.sae.k,
        "seed": config.seed,
        "sae": config.sae.name,
        "model": config.model.path or config.model.name,
        "data": config.data.path or config.data.name or "packaged",
        "lr": config.optimizer.lr,
        "max_steps": config.trainer.max_steps,
        "tokens": config.trainer.max_steps * config.trainer.batch * config.trainer.accumulate * config.model.context,
        "kl": config.loss.kl,
        "downstream": config.loss.downstream,
        "reconstruction": config.loss.reconstruction,
        "fisher": config.loss.fisher,
        "finetune_share": config.loss.finetune_share,
    }
    return {key: value for key, value in found.items() if value is not None}


def tags(config: Config) -> dict[str, str]:
    """What people filter by."""
    if config.toy is not None:
        found = {"toy": config.toy.experiment, "sweep": config.sweep_name, "git_sha": git_sha()}
        return {key: value for key, value in found.items() if value is not None}
    if config.task.named:
        group, name = experiment_name(config)
        found = {group: name, "sweep": config.sweep_name, "git_sha": git_sha()}
        return {key: value for key, value in found.items() if value is not None}
    found = {
        "loss": config.loss.name,
        "sae": config.sae.name,
        "layer": str(config.layer) if config.hook_points is None else None,
        "sweep": config.sweep_name,
        "git_sha": git_sha(),
    }
    return {key: value for key, value in found.items() if value is not None}
