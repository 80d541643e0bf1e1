"""Trains a program, or takes up where an earlier start left off."""

from collections.abc import Callable
from pathlib import Path

from crux.config.errors import UserError
from crux.config.schema import Config
from crux.sae import assemble
from crux.toy.features import Purpose
from crux.toy.module import SuperpositionModule, ToyRecipe, initial
from crux.toy.program import Program, Trained, held_out_loss, load, save
from crux.toy.superposition import SuperpositionModel
from crux.training.data import Feed
from crux.training.fit import checkpoint_step, fit

Row = Callable[[int, dict[str, float]], None]


def recipe(config: Config) -> ToyRecipe:
    """How the weights move."""
    optimizer, steps = config.optimizer, config.trainer.max_steps
    assert config.toy is not None
    n = config.toy.snapshots
    return ToyRecipe(
        lr=optimizer.lr,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        min_lr_factor=optimizer.min_lr_factor,
        max_steps=steps,
        log_every=config.trainer.log_every,
        snapshots=tuple(sorted({round(steps * i / n) for i in range(n + 1)})) if n else (),
    )


def train(program: Program, config: Config, *, folder: Path, add_row: Row) -> Trained:
    """Trains every instance of the program; `folder` is its own, and holds a checkpoint where it was interrupted.

    Raises:
        UserError: where a loss stopped being a number.
    """
    if (folder / "model.safetensors").exists():
        return load(folder)
    assert config.toy is not None
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    start = checkpoint_step(checkpoint)
    weights = initial(
        program.kind,
        seeds=program.seeds,
        n_settings=program.importance.shape[1],
        n_features=program.n_features,
        n_hidden=program.n_hidden,
    )
    scale = config.toy.init_scale
    weights = weights._replace(W=scale * weights.W, W_out=None if weights.W_out is None else scale * weights.W_out)
    module = SuperpositionModule(
        SuperpositionModel(program.kind, weights),
        importance=program.importance,
        recipe=recipe(config),
        snapshots=folder / "snapshots",
    )
    trainer, n_instances = config.trainer, program.importance.shape[:2].numel()
    data = program.data(batch=trainer.batch, n_batches=trainer.max_steps, purpose=Purpose.training)
    fit(
        module,
        Feed(data, accumulate=1),
        pace=assemble.pace(config)._replace(tokens_per_step=n_instances * data.batch, unit="samples"),
        checkpoints=checkpoint.parent,
        resume=checkpoint if start else None,
        sinks=[add_row],
        judge=None,
        shown={"train/loss": program.name},
        abandoned=None,
    )
    weights = module.cpu().model.weights
    loss = held_out_loss(program, weights, samples=config.toy.held_out, batch=min(config.toy.held_out, 1024))
    if not bool(loss.isfinite().all()):
        raise UserError("the held-out loss is not a finite number; try a lower optimizer.lr")
    save(folder, Trained(program, weights, loss, {}))
    checkpoint.unlink(missing_ok=True)
    return load(folder)
