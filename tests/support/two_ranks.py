"""Training jobs that run in one process or, as a script that a test starts twice, on two ranks that share each batch.

RANK=r LOCAL_RANK=r WORLD_SIZE=2 MASTER_ADDR=… MASTER_PORT=… python -m tests.support.two_ranks <folder> <job> [<job> …]
leaves <folder>/<job>_<r>.pt
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from crux.sae.architectures.options import Auxk
from crux.sae.architectures.site import Site
from crux.sae.training.non_finite import NonFiniteLossError
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Steering
from tests.support.architectures import ARCHITECTURES, make_arguments
from tests.support.small_runs import (
    HOOK,
    NO_AUXK,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_module,
    make_optimizer,
    make_training_batches,
    run_fit,
)

STEPS = 10


class Trace(NamedTuple):
    """The record of a training on one rank, and its final state."""

    rows: list[dict[str, float]]
    gradients: list[list[Tensor]]
    """The gradients by step and parameter, before clipping."""
    state: dict[str, Tensor]
    """All parameters and buffers."""
    error: str
    """The message of the error that ended the training; empty if there was none."""


def build_job(job: str) -> tuple[SAEModule, list[Tensor], Any, int]:
    """Build the job that is named `loss/architecture[/option…]`.

    Returns the module, the token batches, the training batches of the loss, and the number of micro-batches per step.
    """
    loss, architecture, *options = job.split("/")
    loss = cast(Loss, loss)
    accumulate = 2 if "accumulate" in options else 1
    subject = make_gpt2()
    sae = ARCHITECTURES[architecture](make_arguments(d_model=subject.d_model, subtract_b_dec=True))
    sites = [Site(HOOK, HOOK, sae)]
    target = "sampled" if "sampled" in options else "data"
    module = make_module(
        loss,
        subject,
        sites=sites,
        optimizer=make_optimizer(clip=0.05 if "clip" in options else 10.0),
        max_steps=STEPS,
        auxk=Auxk(0.5, 4, 40) if "auxk" in options else NO_AUXK,
        steering=Steering(4, STEPS) if "steered" in options else None,
        skip_positions=(0, 5) if "skip" in options else (),
        target=target,
    )
    if "auxk" in options:  # eight latents that never fire
        with torch.no_grad():
            sae.W_enc[:, :8] = 0.0
            sae.b_enc[:8] = -5.0
    tokens = draw_token_batches(subject, n=STEPS * accumulate, batch=4)
    return module, tokens, make_training_batches(loss, subject, tokens, sites=sites, target=target), accumulate


def train_job(job: str, *, devices: int, rank: int, folder: Path, stop: int = STEPS, resume: bool = False) -> Trace:
    """Train for ten steps with a checkpoint every five; `stop` is the step at which the run is ended, as by a kill."""
    torch.manual_seed(0)
    module, _, source, accumulate = build_job(job)
    rows: list[dict[str, float]] = []
    gradients: list[list[Tensor]] = []

    def record_gradients(optimizer: Any) -> None:
        gradients.append([p.grad.clone() for p in module.saes.parameters() if p.grad is not None])

    def stop_or_break(batch: Any, batch_idx: int) -> None:
        if module.global_step == stop:  # as if the process were killed
            raise KeyError("killed")
        if "broken" in job and rank == 1 and module.global_step == 3:
            module.sparsity.weight.fill_(float("nan"))
        SAEModule.on_train_batch_start(module, batch, batch_idx)

    module.on_before_optimizer_step = record_gradients
    module.on_train_batch_start = stop_or_break
    error = ""
    try:
        run_fit(
            module,
            source,
            checkpoints=folder / "checkpoints",
            sinks=[lambda step, row: rows.append({"step": step, **row})],
            accumulate=accumulate,
            checkpoint_every=5,
            resume=folder / "checkpoints" / "last.ckpt" if resume else None,
            devices=devices,
        )
    except (NonFiniteLossError, KeyError) as stopped:
        error = str(stopped)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return Trace(rows, gradients, state, error)


def main(folder: Path, jobs: list[str]) -> None:
    import os

    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    for job in jobs:
        job_folder = folder / job.replace("/", "_")
        traces = [train_job(job, devices=2, rank=rank, folder=job_folder)]
        if job.endswith("resume"):
            broken = job_folder / "broken"
            train_job(job, devices=2, rank=rank, folder=broken, stop=7)  # between the checkpoints of steps 5 and 10
            torch.distributed.destroy_process_group()
            traces.append(train_job(job, devices=2, rank=rank, folder=broken, resume=True))
        torch.save([trace._asdict() for trace in traces], f"{job_folder}_{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
