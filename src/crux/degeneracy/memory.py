"""The memory that the networks and samples of the degeneracy experiments need at least. Torch-free."""

from collections.abc import Collection, Sequence
from itertools import pairwise

from crux.config.schema import Accelerator
from crux.degeneracy.basis_options import AdditionSizes, CompareOptions
from crux.runs.memory import BYTES_PER_WEIGHT, Need, check_memory


def check_perceptron_memory(hidden: Sequence[int], *, inputs: int, key: str) -> None:
    """Check that a perceptron with so many inputs and these hidden layers fits into memory; `key` is the option with the widths.

    Raises:
        UserError: if it does not.
    """
    weights = sum(hidden) + sum(a * b for a, b in pairwise([inputs, *hidden]))
    check_memory([Need("the perceptron", weights * BYTES_PER_WEIGHT, (key,))], accelerator=Accelerator.cpu, given=())


def check_addition_memory(sizes: AdditionSizes, *, accelerator: Accelerator, given: Collection[str]) -> None:
    """Check that a modular-addition transformer and its full batch fit into memory.

    Raises:
        UserError: if they do not.
    """
    section = "interaction_basis.addition"
    weights = 4 * sizes.d_model**2 + 2 * sizes.d_model * (sizes.d_mlp + sizes.p)
    batch = 0.01 * sizes.p**2 * (sizes.d_model + sizes.d_mlp) * 4  # of the smallest shares of the pairs that are of use
    needs = [
        Need("the transformer", weights * BYTES_PER_WEIGHT, (f"{section}.d_model", f"{section}.d_mlp", f"{section}.p")),
        Need("the training pairs", batch, (f"{section}.p",)),
    ]
    check_memory(needs, accelerator=accelerator, given=given)


def check_comparison_memory(
    compare: CompareOptions, *, numbers_per_sample: int, accelerator: Accelerator, given: Collection[str]
) -> None:
    """Check that a batch of a comparison of bases, and the samples, fit into memory.

    Args:
        numbers_per_sample: numbers of a sample at one hook point, at least.

    Raises:
        UserError: if they do not.
    """
    section = "interaction_basis.compare"
    batch = min(compare.batch, compare.samples)
    needs = [
        Need("a batch", batch * numbers_per_sample * len(compare.hooks) * 4, (f"{section}.batch", f"{section}.length")),
        Need("the samples", compare.samples * 4, (f"{section}.samples",)),
    ]
    check_memory(needs, accelerator=accelerator, given=given)
