"""Synthetic features: their statistics, and the independence of a stream from other streams."""

import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.toy.features import FeatureBatches, FeatureDistribution, Purpose
from crux.toy.options import Cooccurrence

INDEPENDENT = FeatureDistribution(Cooccurrence.independent, 1, False)


def build_batches(
    distribution: FeatureDistribution,
    density: Tensor,
    *,
    seeds: list[int],
    batch: int,
    points: int | None = None,
    n: int = 4,
) -> FeatureBatches:
    return FeatureBatches(
        distribution,
        seeds=torch.tensor(seeds),
        density=density,
        batch=batch,
        n_batches=n,
        points=points,
        purpose=Purpose.training,
    )


def assert_share_is_near(share: Tensor, p: Tensor, n: int) -> None:
    """Check that a share of n samples is within five standard errors of p; once in 2²⁴ a magnitude is exactly 0 and looks inactive."""
    assert bool(((share - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-5).all()), (share, p)


@pytest.mark.parametrize(
    "p", [1.0, 0.3, 0.1, 0.02, 0.003]
)  # above 0.1 one random number per position, otherwise positions
def test_independent_features_have_their_density_and_uniform_magnitudes(p: float) -> None:
    n = 200_000
    x = build_batches(INDEPENDENT, torch.full((1, 3), p), seeds=[1], batch=n)[0][0]
    assert_share_is_near((x > 0).double().mean(0), torch.full((3,), p), n)
    active = x[x > 0].double()
    m = len(active)
    assert 0 < active.min() < active.max() < 1
    assert abs(active.mean() - 0.5) < 5 / (12 * m) ** 0.5
    assert abs(active.square().mean() - 1 / 3) < 5 * (4 / 45 / m) ** 0.5
    both = ((x[:, 0] > 0) & (x[:, 1] > 0)).double().mean()
    assert_share_is_near(both, torch.tensor(p * p), n)


def test_densities_may_differ_between_features() -> None:
    p = torch.tensor([[0.05, 0.02, 0.002], [0.5, 0.05, 0.01]])
    n = 400_000
    x = build_batches(INDEPENDENT, p, seeds=[0, 0], batch=n)[0]
    for stream, density in zip(x, p, strict=True):
        assert_share_is_near((stream > 0).double().mean(0), density, n)


def test_unit_samples_keep_their_directions_and_empty_ones_stay_empty() -> None:
    p = torch.full((1, 20), 0.05)
    plain = build_batches(INDEPENDENT, p, seeds=[3], batch=500)[0][0]
    unit = build_batches(INDEPENDENT._replace(unit=True), p, seeds=[3], batch=500)[0][0]
    length = plain.norm(dim=-1, keepdim=True)
    assert 0 < int((length == 0).sum()) < 500
    torch.testing.assert_close(unit, torch.where(length > 0, plain / length, 0))
    torch.testing.assert_close(unit.norm(dim=-1), (length[:, 0] > 0).float())


def test_signed_magnitudes_are_symmetric() -> None:
    n = 200_000
    x = build_batches(
        FeatureDistribution(Cooccurrence.independent, 1, True), torch.full((1, 2), 0.4), seeds=[2], batch=n
    )[0][0]
    assert_share_is_near((x != 0).double().mean(0), torch.full((2,), 0.4), n)
    active = x[x != 0].double()
    assert abs(active.mean()) < 5 / (3 * len(active)) ** 0.5
    assert abs(active.square().mean() - 1 / 3) < 5 * (4 / 45 / len(active)) ** 0.5
    assert -1 <= active.min() < -0.99
    assert 0.99 < active.max() < 1


def test_a_correlated_set_is_active_together_with_independent_magnitudes() -> None:
    n, p = 200_000, 0.2
    distribution = FeatureDistribution(Cooccurrence.correlated, 2, False)
    x = build_batches(distribution, torch.full((1, 6), p), seeds=[3], batch=n)[0][0].double()
    active = (x > 0).unflatten(1, (2, 3))
    assert bool((active.all(2) == active.any(2)).all())
    assert_share_is_near(active[:, :, 0].double().mean(0), torch.full((2,), p), n)
    assert_share_is_near((active[:, 0, 0] & active[:, 1, 0]).double().mean(), torch.tensor(p * p), n)
    together = x[active[:, 0, 0]][:, :3]
    assert torch.corrcoef(together.T).triu(1).abs().max() < 5 / len(together) ** 0.5


def test_at_most_one_feature_of_an_anticorrelated_set_is_active() -> None:
    n, p = 200_000, 0.2
    distribution = FeatureDistribution(Cooccurrence.anticorrelated, 2, False)
    x = build_batches(distribution, torch.full((1, 6), p), seeds=[4], batch=n)[0][0]
    active = (x > 0).unflatten(1, (2, 3))
    assert int(active.sum(2).max()) == 1
    assert_share_is_near((x > 0).double().mean(0), torch.full((6,), p), n)
    assert_share_is_near((active.any(2).all(1)).double().mean(), torch.tensor((3 * p) ** 2), n)


def test_exactly_one_feature_is_active_uniformly() -> None:
    n = 100_000
    x = build_batches(
        FeatureDistribution(Cooccurrence.one_active, 1, False), torch.full((1, 5), 0.2), seeds=[5], batch=n
    )[0][0]
    assert bool(((x > 0).sum(1) == 1).all())
    assert_share_is_near((x > 0).double().mean(0), torch.full((5,), 0.2), n)


@pytest.mark.parametrize("together", list(Cooccurrence))
def test_a_stream_does_not_depend_on_other_streams(together: Cooccurrence) -> None:
    distribution = FeatureDistribution(together, 2, False)
    p = (
        torch.full((100, 4), 0.25)
        if together is Cooccurrence.one_active
        else torch.linspace(0.01, 0.5, 100)[:, None].repeat(1, 4)
    )
    seeds = list(range(100))
    many = build_batches(distribution, p, seeds=seeds, batch=64)
    for k in (0, 17, 99):
        alone = build_batches(distribution, p[k : k + 1], seeds=[seeds[k]], batch=64)
        for i in (0, 3):
            assert torch.equal(alone[i][0], many[i][k])
    assert torch.equal(many[2], many[2])  # depends only on (seed, i), not on the order of access
    assert not torch.equal(many[2], many[1])


def test_seeds_and_purposes_have_different_numbers() -> None:
    p = torch.full((1, 4), 0.5)
    training = build_batches(INDEPENDENT, p, seeds=[0], batch=64)
    other = build_batches(INDEPENDENT, p, seeds=[1], batch=64)
    held_out = FeatureBatches(
        INDEPENDENT, seeds=torch.tensor([0]), density=p, batch=64, n_batches=4, points=None, purpose=Purpose.held_out
    )
    assert not torch.equal(training[0], other[0])
    assert not torch.equal(training[0], held_out[0])


def test_finite_data_are_the_same_in_every_batch() -> None:
    data = build_batches(INDEPENDENT, torch.full((2, 4), 0.5), seeds=[0, 1], batch=64, points=7)
    assert data[0].shape == (2, 7, 4)
    assert torch.equal(data[0], data[3])


def test_impossible_distributions_are_rejected() -> None:
    with pytest.raises(UserError, match="more than 0"):
        build_batches(INDEPENDENT, torch.zeros(1, 2), seeds=[0], batch=2)
    with pytest.raises(UserError, match=r"a density can be at most 0\.5"):
        build_batches(
            FeatureDistribution(Cooccurrence.anticorrelated, 2, False), torch.full((1, 4), 0.6), seeds=[0], batch=2
        )
    with pytest.raises(UserError, match="cannot be 3 equal sets"):
        build_batches(
            FeatureDistribution(Cooccurrence.correlated, 3, False), torch.full((1, 4), 0.6), seeds=[0], batch=2
        )
    with pytest.raises(UserError, match="the same density"):
        build_batches(
            FeatureDistribution(Cooccurrence.correlated, 1, False), torch.tensor([[0.5, 0.4]]), seeds=[0], batch=2
        )
    with pytest.raises(UserError, match="density 1/4"):
        build_batches(
            FeatureDistribution(Cooccurrence.one_active, 1, False), torch.full((1, 4), 0.5), seeds=[0], batch=2
        )
