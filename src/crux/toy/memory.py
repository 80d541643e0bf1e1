"""The memory that training toy models needs at least. Torch-free."""

from collections.abc import Collection

from crux.config.schema import Accelerator, BatchTrainer
from crux.runs.memory import BYTES_PER_WEIGHT, Need, check_memory
from crux.toy.options import DoubleDescent, OneVariedFeature, PhaseDiagram, Tiled, Toy, ToySaeJob


def check_toy_memory(toy: Toy, trainer: BatchTrainer, *, given: Collection[str]) -> None:
    """Check that the models of a program, their samples of a step, and their snapshots fit into memory.

    Raises:
        UserError: if they do not.
    """
    streams = toy.seeds * len(toy.densities)
    settings = len(toy.ratios) if isinstance(toy, PhaseDiagram | OneVariedFeature) else 1
    at_once = min(streams, toy.tile) if isinstance(toy, Tiled | PhaseDiagram) else streams
    size = max(toy.model_sizes, key=lambda size: size.n_features * size.n_hidden)
    weights = settings * (size.n_features * size.n_hidden + size.n_features)
    sizes = ("toy.sizes",) if not hasattr(toy, "n_features") else ("toy.n_features", "toy.n_hidden")
    needs = [
        Need("the models' weights and Adam's moments", at_once * weights * BYTES_PER_WEIGHT, (*sizes, "toy.seeds")),
        Need(
            "the samples of a step",
            2 * at_once * trainer.batch * size.n_features * 4,
            ("trainer.batch", "toy.seeds", *sizes),
        ),
        Need("all trained weights", streams * weights * 4, (*sizes, "toy.seeds")),
        Need("the snapshots", toy.snapshots * at_once * weights * 4, ("toy.snapshots", *sizes)),
    ]
    if isinstance(toy, DoubleDescent):
        points = max(toy.points) * size.n_features * streams * 4
        needs.append(Need("the training sets", points, ("toy.points", *sizes)))
    check_memory(needs, accelerator=trainer.accelerator, given=given)


def check_toy_sae_memory(job: ToySaeJob, n_hidden: int, *, given: Collection[str]) -> None:
    """Check that an SAE on a toy model, and the latents of its micro-batch, fit into memory.

    Raises:
        UserError: if they do not.
    """
    n_latents = job.sae.count_latents(n_hidden)
    keys = ("sae.n_latents",) if job.sae.n_latents is not None else ("sae.ratio",)
    needs = [
        Need("the SAE's weights, gradients and Adam's moments", 2 * n_latents * n_hidden * BYTES_PER_WEIGHT, keys),
        Need(
            "the latents of a micro-batch", 2 * job.samples * n_latents * 4, ("trainer.batch", "model.context", *keys)
        ),
    ]
    check_memory(needs, accelerator=Accelerator.cpu, given=given)
