"""Ablations: the loss of a network when only the strongest directions of a basis, or edges between two bases, are kept.

All other coordinates are set to 0, their mean. An ablation's `loss(n)` is the mean loss over samples when the n strongest directions or
edges are kept, 0 ≤ n ≤ `size`.
`smallest_sufficient` finds how many are needed.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.progress import track
from crux.degeneracy.basis import Basis
from crux.degeneracy.grams import check_data, check_hooks_in_order
from crux.degeneracy.networks.network import Network
from crux.subjects.subject import Clean

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(inputs, activation at the end) → one number per sample; lower is better. For an accuracy: 1 if the sample is wrong, else 0."""


def clean_loss(network: Network, batches: Sequence[Tensor], *, end: str, loss: SampleLoss) -> float:
    """Return the mean loss of the unmodified network."""
    check_data(batches)
    return _mean(loss(x, network.clean(x, capture=[end], final=False).activations[end]) for x in batches)


class NodeAblation:
    """Measures the loss of a network when only the strongest directions of a basis are kept.

    Args:
        end: the hook point whose activation the loss reads.
    """

    def __init__(
        self, network: Network, batches: Sequence[Tensor], *, basis: Basis, end: str, loss: SampleLoss
    ) -> None:
        check_data(batches)
        self._network, self._basis, self._end, self._loss = network, basis, end, loss
        self._batches = [(x, network.clean(x, capture=[basis.hook], final=False)) for x in batches]
        self.size = basis.size

    def loss(self, n: int) -> float:
        """Return the mean loss with the n strongest directions kept."""
        batches = track(self._batches, f"ablating directions at {self._basis.hook}")
        return _mean(self._loss(x, self._run(clean, n)) for x, clean in batches)

    @torch.no_grad()
    def _run(self, clean: Clean, n: int) -> Tensor:
        hook = self._basis.hook
        value = self._basis.keep_strongest(clean.activations[hook], n)
        return self._network.continue_from(clean, hook, value, ends=[self._end])[self._end]


class EdgeAblation:
    """Measures the loss of a network when only the strongest edges between two bases are kept.

    Each direction of the second basis is computed from those directions of the first to which it still has an edge. Directions with the
    same edges share a forward pass.

    Both hook points should carry everything that later layers read, such as the residual stream: whatever bypasses the second hook point
    keeps its clean value.

    Args:
        strength: the edges, [to, from].
        end: the hook point whose activation the loss reads, at the second basis or after it.
    """

    def __init__(
        self,
        network: Network,
        batches: Sequence[Tensor],
        *,
        bases: tuple[Basis, Basis],
        strength: Float[Tensor, "n_to n_from"],
        end: str,
        loss: SampleLoss,
    ) -> None:
        check_data(batches)
        self._a, self._b = bases
        check_hooks_in_order(network, [self._a.hook, self._b.hook])
        assert strength.shape == (self._b.size, self._a.size)
        self._network, self._end, self._loss = network, end, loss
        hooks = [self._a.hook, self._b.hook]
        self._batches = [(x, network.clean(x, capture=hooks, final=False)) for x in batches]
        self._order = strength.flatten().argsort(descending=True, stable=True)
        self.size = len(self._order)

    def mask(self, n: int) -> Bool[Tensor, "n_to n_from"]:
        """Return a mask of the n strongest edges."""
        kept = torch.zeros(self.size, dtype=torch.bool, device=self._order.device)
        kept[self._order[:n]] = True
        return kept.view(self._b.size, self._a.size)

    def loss(self, n: int) -> float:
        """Return the mean loss with the n strongest edges kept."""
        # one mask of the first basis for each distinct row, so that equal rows share a forward pass
        masks, mask_of_row = self.mask(n).unique(dim=0, return_inverse=True)
        batches = track(self._batches, f"ablating edges from {self._a.hook} to {self._b.hook}")
        return _mean(self._loss(x, self._run(clean, masks, mask_of_row)) for x, clean in batches)

    @torch.no_grad()
    def _run(self, clean: Clean, masks: Bool[Tensor, "mask n_from"], mask_of_row: Int[Tensor, "n_to"]) -> Tensor:
        a, b, continue_from = self._a, self._b, self._network.continue_from
        f = clean.activations[a.hook]
        coordinates = a.coordinates(f)
        target = clean.activations[b.hook]
        ablated = torch.zeros(*target.shape[:-1], b.size, dtype=torch.float64, device=target.device)
        for k, mask in enumerate(track(masks, "directions with the same edges")):
            rows = mask_of_row == k  # the directions of b that have exactly these edges
            value_at_a = (a.mean + coordinates[..., mask] @ a.C_pinv[mask]).to(f.dtype)
            value_at_b = continue_from(clean, a.hook, value_at_a, ends=[b.hook])[b.hook]
            ablated[..., rows] = (value_at_b.double() - b.mean) @ b.C[:, rows]
        value = b.activations(ablated).to(target.dtype)
        return continue_from(clean, b.hook, value, ends=[self._end])[self._end]


def smallest_sufficient(loss: Callable[[int], float], *, size: int, limit: float) -> int | None:
    """Return a number n ≤ size with loss(n) ≤ limit, found by doubling and then bisection; None if even `size` is too few.

    The loss of n − 1 is above the limit. If the loss is not monotonic, a smaller number may be sufficient too.
    """
    if loss(0) <= limit:
        return 0
    low, high = 0, 1  # `low` is too few
    while high < size and loss(high) > limit:
        low, high = high, 2 * high
    high = min(high, size)
    if high == size and loss(size) > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= limit else (middle, high)
    return high


def curve_counts(size: int) -> list[int]:
    """Return 0, the powers of two below `size`, and `size`: the points of an ablation curve."""
    return [0, *(2**k for k in range(size.bit_length()) if 2**k < size), size]


def _mean(losses: Iterable[Tensor]) -> float:
    return float(torch.cat([values.detach().double().flatten() for values in losses]).mean())
