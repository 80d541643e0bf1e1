"""What a network loses when few directions of a basis, or few edges between two bases, are kept.

Everything else is at its mean, f̂ = 0. `loss(n)` is the loss with the n strongest kept, for n from 0 to `size`; `least` finds how many
are needed. A loss is (inputs, activation at the end) → one number a sample, lower is better: for an accuracy, 1 where it is wrong.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.progress import track
from crux.degeneracy.basis import Basis
from crux.degeneracy.grams import check_data, check_order
from crux.degeneracy.networks.network import Network
from crux.subjects.subject import Clean

Loss = Callable[[Tensor, Tensor], Tensor]


def clean_loss(network: Network, batches: Sequence[Tensor], *, end: str, loss: Loss) -> float:
    """Mean loss of the network as it is."""
    check_data(batches)
    return _mean(loss(x, network.clean(x, capture=[end], final=False).activations[end]) for x in batches)


class NodeAblation:
    """Keeps the strongest directions of a basis.

    Args:
        end: hook point whose activation the loss reads.
    """

    def __init__(self, network: Network, batches: Sequence[Tensor], *, basis: Basis, end: str, loss: Loss) -> None:
        check_data(batches)
        self._network, self._basis, self._end, self._loss = network, basis, end, loss
        self._batches = [(x, network.clean(x, capture=[basis.hook], final=False)) for x in batches]
        self.size = basis.size

    def loss(self, n: int) -> float:
        batches = track(self._batches, f"ablating directions at {self._basis.hook}")
        return _mean(self._loss(x, self._reached(clean, n)) for x, clean in batches)

    @torch.no_grad()
    def _reached(self, clean: Clean, n: int) -> Tensor:
        hook = self._basis.hook
        value = self._basis.kept(clean.activations[hook], n)
        return self._network.onward(clean, hook, value, ends=[self._end])[self._end]


class EdgeAblation:
    """Keeps the strongest edges between two bases: each direction of the second is computed from those of the first that it still has
    an edge from. Directions with the same edges share a forward pass.

    Both should hold all that later layers read (the residual stream): what goes past the second hook point stays clean.

    Args:
        strength: the edges, [to, from].
        end: hook point whose activation the loss reads, at the second basis or behind.
    """

    def __init__(
        self,
        network: Network,
        batches: Sequence[Tensor],
        *,
        bases: tuple[Basis, Basis],
        strength: Float[Tensor, "n_to n_from"],
        end: str,
        loss: Loss,
    ) -> None:
        check_data(batches)
        self._a, self._b = bases
        check_order(network, [self._a.hook, self._b.hook])
        assert strength.shape == (self._b.size, self._a.size)
        self._network, self._end, self._loss = network, end, loss
        hooks = [self._a.hook, self._b.hook]
        self._batches = [(x, network.clean(x, capture=hooks, final=False)) for x in batches]
        self._order = strength.flatten().argsort(descending=True, stable=True)
        self.size = len(self._order)

    def mask(self, n: int) -> Bool[Tensor, "n_to n_from"]:
        """The n strongest edges."""
        kept = torch.zeros(self.size, dtype=torch.bool, device=self._order.device)
        kept[self._order[:n]] = True
        return kept.view(self._b.size, self._a.size)

    def loss(self, n: int) -> float:
        masks, which = self.mask(n).unique(dim=0, return_inverse=True)
        batches = track(self._batches, f"ablating edges from {self._a.hook} to {self._b.hook}")
        return _mean(self._loss(x, self._reached(clean, masks, which)) for x, clean in batches)

    @torch.no_grad()
    def _reached(self, clean: Clean, masks: Bool[Tensor, "mask n_from"], which: Int[Tensor, "n_to"]) -> Tensor:
        a, b, onward = self._a, self._b, self._network.onward
        f = clean.activations[a.hook]
        coordinates = a.coordinates(f)
        target = clean.activations[b.hook]
        found = torch.zeros(*target.shape[:-1], b.size, dtype=torch.float64, device=target.device)
        for k, mask in enumerate(track(masks, "directions with the same edges")):
            rows = which == k
            value = (a.mean + coordinates[..., mask] @ a.C_pinv[mask]).to(f.dtype)
            reached = onward(clean, a.hook, value, ends=[b.hook])[b.hook]
            found[..., rows] = (reached.double() - b.mean) @ b.C[:, rows]
        value = b.activations(found).to(target.dtype)
        return onward(clean, b.hook, value, ends=[self._end])[self._end]


def least(loss: Callable[[int], float], *, size: int, limit: float) -> int | None:
    """How many must be kept for a loss of at most `limit`: by doubling, then bisection; None where all of them are too few.

    Where the loss rises again on the way there may be a smaller number too; with one less than this the loss is above the limit.
    """
    if loss(0) <= limit:
        return 0
    low, high = 0, 1  # low is too few
    while high < size and loss(high) > limit:
        low, high = high, 2 * high
    high = min(high, size)
    if high == size and loss(size) > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(middle) <= limit else (middle, high)
    return high


def counts(size: int) -> list[int]:
    """0, the powers of two, and `size`: what `least` looks at first, and enough for a curve."""
    return [0, *(2**k for k in range(size.bit_length()) if 2**k < size), size]


def _mean(losses: Iterable[Tensor]) -> float:
    return float(torch.cat([values.detach().double().flatten() for values in losses]).mean())
