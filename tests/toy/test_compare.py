"""Comparing instances: shared samples, tiles of a program, and polishing on samples."""

import torch

from crux.toy.compare import join_tiles, losses_on_shared_samples, polish_on_samples, select_streams
from crux.toy.features import FeatureDistribution, Purpose
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import SuperpositionModel, Weights, sampled_loss


def build_trained(kind: Kind, *, streams: int, settings: int) -> TrainedProgram:
    """Return random instances of four features in two dimensions."""
    torch.manual_seed(0)
    program = Program(
        name="model",
        kind=kind,
        n_hidden=2,
        distribution=FeatureDistribution(Cooccurrence.independent, 1, kind is Kind.absolute_value),
        seeds=torch.arange(streams),
        density=torch.full((streams, 4), 0.5),
        importance=torch.rand(streams, settings, 4),
        points=None,
    )
    W_out = torch.randn(streams, settings, 4, 2) if kind is Kind.absolute_value else None
    weights = Weights(torch.randn(streams, settings, 2, 4), torch.zeros(streams, settings, 4), W_out)
    return TrainedProgram(program, weights, torch.rand(streams, settings), {})


def test_shared_samples_are_those_of_the_first_seed() -> None:
    trained = build_trained(Kind.absolute_value, streams=6, settings=2)
    computed = losses_on_shared_samples(trained, n_seeds=3, samples=500)
    assert computed.shape == (6, 2)
    for stream in (1, 5):  # one of each of the two groups of three seeds
        first = 3 * (stream // 3)  # the stream of the group's first seed, whose samples all three share
        x = select_streams(trained, torch.tensor([first])).program.data(
            batch=500, n_batches=1, purpose=Purpose.held_out
        )[0]
        one = select_streams(trained, torch.tensor([stream]))
        torch.testing.assert_close(computed[stream], sampled_loss(one.model, x, one.program.importance)[0].double())


def test_joined_tiles_equal_the_whole_program() -> None:
    for kind in (Kind.relu_hidden, Kind.absolute_value):
        trained = build_trained(kind, streams=5, settings=1)
        joined = join_tiles(
            [select_streams(trained, torch.tensor([0, 1, 2])), select_streams(trained, torch.tensor([3, 4]))]
        )
        for a, b in zip([*trained.weights, trained.loss], [*joined.weights, joined.loss], strict=True):
            assert (a is None) == (b is None)
            assert a is None or b is None or torch.equal(a, b)
        assert torch.equal(joined.program.seeds, trained.program.seeds)
        assert torch.equal(joined.program.importance, trained.program.importance)


def test_polishing_reaches_a_zero_gradient_and_copies_the_weights() -> None:
    trained = build_trained(Kind.linear, streams=2, settings=1)
    before = trained.weights.W.clone()
    computed = polish_on_samples(trained, active=256, max_iterations=300)
    assert torch.equal(trained.weights.W, before)
    for stream in range(2):
        one = select_streams(computed, torch.tensor([stream]))
        x = one.program.data(batch=512, n_batches=1, purpose=Purpose.training)[0]
        model = SuperpositionModel(Kind.linear, one.weights)
        sampled_loss(model, x, one.program.importance).sum().backward()
        assert model.W.grad is not None
        assert model.W.grad.abs().max() < 1e-4
