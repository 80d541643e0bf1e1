"""The exact loss of every kind of features agrees with a large sample."""

import pytest
import torch

from crux.toy.exact.population import has_population_loss, population_loss
from crux.toy.features import FeatureDistribution
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program, held_out_loss
from crux.toy.superposition import Weights


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("together", list(Cooccurrence))
@pytest.mark.parametrize("kind", [Kind.linear, Kind.relu_output])
def test_exact_loss_agrees_with_a_large_sample(kind: Kind, together: Cooccurrence, signed: bool) -> None:
    torch.manual_seed(0)
    p = torch.tensor([0.25] if together is Cooccurrence.one_active else [0.5, 0.1])
    n = len(p)
    program = Program(
        name="model",
        kind=kind,
        n_hidden=2,
        distribution=FeatureDistribution(together, 2, signed),
        seeds=torch.arange(n),
        density=p[:, None].repeat(1, 4),
        importance=torch.rand(n, 3, 4),
        points=None,
    )
    weights = Weights(0.7 * torch.randn(n, 3, 2, 4), 0.2 * torch.randn(n, 3, 4), None)
    assert has_population_loss(program)
    exact = population_loss(program, weights)
    sampled = held_out_loss(program, weights, samples=400_000, batch=20_000)
    torch.testing.assert_close(exact, sampled, rtol=0.02, atol=1e-4)


def test_large_and_hidden_relu_models_have_no_exact_loss() -> None:
    program = Program(
        name="model",
        kind=Kind.relu_hidden,
        n_hidden=2,
        distribution=FeatureDistribution(Cooccurrence.independent, 1, False),
        seeds=torch.zeros(1, dtype=torch.long),
        density=torch.full((1, 4), 0.5),
        importance=torch.ones(1, 1, 4),
        points=None,
    )
    assert not has_population_loss(program)
    wide = program._replace(kind=Kind.relu_output, density=torch.full((1, 9), 0.5), importance=torch.ones(1, 1, 9))
    assert not has_population_loss(wide)
    unit = wide._replace(distribution=FeatureDistribution(Cooccurrence.independent, 1, False, unit=True))
    assert not has_population_loss(unit._replace(density=torch.full((1, 4), 0.5), importance=torch.ones(1, 1, 4)))
