"""The memory that the Markov chains of a learning coefficient need at least. Torch-free."""

from collections.abc import Collection

from crux.config.schema import Accelerator
from crux.llc.options import AlongTraining, Kgons, Llc, OnData, Sampling
from crux.runs.memory import Need, check_memory

NUMBERS_PER_WEIGHT = 3
"""Numbers that a chain keeps per weight: its position, its gradient, and w*."""


def check_chains_memory(
    llc: Llc, *, weights: int, weight_keys: tuple[str, ...], accelerator: Accelerator, given: Collection[str]
) -> None:
    """Check that all chains, which run as one batch, and the losses of their draws fit into memory.

    Args:
        weights: number of weights that a chain moves, at least.
        weight_keys: the keys that this number grows with.
        given: the keys on the command line.

    Raises:
        UserError: if they do not.
    """
    if not isinstance(llc, Sampling):
        return
    checkpoints = (
        llc.checkpoints if isinstance(llc, AlongTraining) else len(llc.corners) if isinstance(llc, Kgons) else 1
    )
    rows = llc.chains * len(llc.nbetas)
    needs = [
        Need("the chains", rows * weights * NUMBERS_PER_WEIGHT * 4, ("llc.chains", *weight_keys)),
        Need("the losses of the draws", rows * llc.draws * 4, ("llc.draws", "llc.chains")),
    ]
    if isinstance(llc, OnData):
        needs.append(Need("the data of the loss", llc.samples * 4, ("llc.samples",)))
    if isinstance(llc, AlongTraining):
        needs.append(Need("the checkpoints", checkpoints * weights * 4, ("llc.checkpoints", *weight_keys)))
    check_memory(needs, accelerator=accelerator, given=given)
