"""Train a program, or continue a training that was interrupted."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crux.config.errors import UserError
from crux.config.schema import Adam, BatchTrainer, Precision
from crux.runs.run_folder import RunFolder
from crux.toy.features import Purpose
from crux.toy.module import SuperpositionModule, initial_weights
from crux.toy.options import Toy
from crux.toy.program import Program, TrainedProgram, held_out_loss, load_program, save_program
from crux.toy.superposition import SuperpositionModel
from crux.training.callbacks import make_callbacks
from crux.training.checkpoints import checkpoint_step, remove_checkpoints
from crux.training.data import Feed
from crux.training.devices import choose_hardware
from crux.training.fit import fit


def train_program(
    program: Program,
    toy: Toy,
    *,
    optimizer: Adam,
    trainer: BatchTrainer,
    callbacks: Mapping[str, Any],
    folder: Path,
    add_row: Callable[[int, Mapping[str, float]], None],
) -> TrainedProgram:
    """Train every instance of the program, or load it if it has been trained by an earlier start.

    Args:
        callbacks: the section `callbacks` of the configuration.
        folder: the program's folder; it holds a checkpoint if an earlier start was interrupted.

    Raises:
        UserError: if a loss is not finite.
    """
    if (folder / "model.safetensors").exists():
        return load_program(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    start = checkpoint_step(checkpoint)
    weights = initial_weights(
        program.kind,
        seeds=program.seeds,
        n_settings=program.importance.shape[1],
        n_features=program.n_features,
        n_hidden=program.n_hidden,
        scale=toy.init_scale,
    )
    module = SuperpositionModule(
        SuperpositionModel(program.kind, weights),
        importance=program.importance,
        optimizer=optimizer,
        max_steps=trainer.max_steps,
        log_every=trainer.log_every,
        snapshots={step: folder / "snapshots" / f"{step}.safetensors" for step in snapshot_steps(toy, trainer)},
    )
    data = program.data(batch=trainer.batch, n_batches=trainer.max_steps, purpose=Purpose.training)
    fit(
        module,
        Feed(data, accumulate=1),
        trainer=trainer,
        hardware=choose_hardware(trainer.accelerator, precision=Precision.float32, devices=1),
        items_per_step=program.importance.shape[:2].numel() * data.batch,
        unit="samples",
        checkpoints=checkpoint.parent,
        resume=checkpoint if start else None,
        sinks=[add_row],
        evaluations=None,
        bar_labels={"train/loss": program.name},
        callbacks=make_callbacks(callbacks),
        on_abandon=None,
    )
    weights = module.cpu().model.weights
    loss = held_out_loss(program, weights, samples=toy.held_out, batch=min(toy.held_out, 1024))
    if not bool(loss.isfinite().all()):
        raise UserError("the held-out loss is not a finite number; try a lower optimizer.lr")
    save_program(folder, TrainedProgram(program, weights, loss, {}))
    remove_checkpoints(checkpoint)
    return load_program(folder)


def snapshot_steps(toy: Toy, trainer: BatchTrainer) -> list[int]:
    """Return the steps after which snapshots of the weights are written."""
    n = toy.snapshots
    return sorted({round(trainer.max_steps * i / n) for i in range(n + 1)}) if n else []


def last_row_of_programs(folder: RunFolder, names: Sequence[str], *, max_steps: int) -> int:
    """Return the step of the last history row to keep when a job continues that trains these programs one after the other.

    Rows of finished programs are kept; those of the interrupted program are kept up to its checkpoint.
    """
    for i, name in enumerate(names):
        program_folder = folder.programs / name
        if not (program_folder / "model.safetensors").exists():
            return i * max_steps + checkpoint_step(program_folder / "checkpoints" / "last.ckpt")
    return len(names) * max_steps
