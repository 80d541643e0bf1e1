"""A pixel that missed the best basin gets it from a neighbouring pixel."""

import torch

from crux.toy.exact.neighbours import polish_from_neighbours
from crux.toy.exact.polish import polish
from crux.toy.features import FeatureDistribution
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program
from crux.toy.superposition import Weights

POLISH = {"gradient_tolerance": 1e-8, "max_iterations": 300}


def classify_sharing(W: torch.Tensor) -> torch.Tensor:
    """Return 1 if the two features are opposite, 0 if the second is dropped."""
    return (W[..., 0, 1].abs() > 0.5).long()


def test_only_the_better_optimum_spreads() -> None:
    n = 4  # importance ratios at one density; the digon is the optimum at all of them, but only the last pixel has found it
    program = Program(
        name="2_1",
        kind=Kind.relu_output,
        n_hidden=1,
        distribution=FeatureDistribution(Cooccurrence.independent, 1, False),
        seeds=torch.tensor([0]),
        density=torch.full((1, 2), 0.1),
        importance=torch.tensor([[[1.0, r] for r in (0.5, 0.7, 0.9, 1.0)]]),
        points=None,
    )
    dropped = torch.tensor([[1.0, 0.0]]).expand(1, n, 1, 2).clone()
    dropped[0, -1] = torch.tensor([[1.0, -1.0]])
    b = torch.tensor([0.0, 0.05]).expand(1, n, 2).clone()
    b[0, -1] = 0.0
    own = polish(program, Weights(dropped, b, None), **POLISH)
    assert classify_sharing(own.weights.W).tolist() == [[0, 0, 0, 1]]
    improved, lowered = polish_from_neighbours(program, own, classify=classify_sharing, **POLISH)
    assert lowered == n - 1
    assert classify_sharing(improved.weights.W).tolist() == [[1] * n]
    assert bool((improved.loss <= own.loss).all())
    assert improved.loss[0, -1] == own.loss[0, -1]
    again, more = polish_from_neighbours(program, improved, classify=classify_sharing, **POLISH)
    assert more == 0
    assert torch.equal(again.loss, improved.loss)
