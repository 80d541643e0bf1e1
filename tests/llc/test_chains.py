"""Interrupted and resumed chains equal uninterrupted ones bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.llc.chains import Checkpoint
from crux.llc.estimate import LLC
from crux.llc.losses import FixedData, Minibatches, map_over_chains
from crux.llc.samplers.hmc import HMC
from crux.llc.samplers.interface import Sampler
from crux.llc.samplers.rmsprop_sgld import RMSPROP
from crux.llc.samplers.sgld import SGLD
from tests.support.quadratic_losses import estimate, quadratic, values

Loss = Callable[[dict[str, Tensor], object], Tensor]


class Interrupted(Exception):
    """An exception that stands for a killed process."""


class CountingLoss:
    """A loss that counts its calls and raises `Interrupted` at call number `stop`."""

    def __init__(self, loss: Loss, *, stop: int | None = None) -> None:
        self.loss, self.stop, self.calls = loss, stop, 0

    def __call__(self, p: dict[str, Tensor], batch: object) -> Tensor:
        self.calls += 1
        if self.calls == self.stop:
            raise Interrupted
        return self.loss(p, batch)


def assert_equal(a: LLC, b: LLC) -> None:
    for name in LLC._fields:
        x, y = getattr(a, name), getattr(b, name)
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y, name


@pytest.mark.parametrize(
    "sampler", [SGLD(), RMSPROP, HMC(leapfrogs=3), HMC(leapfrogs=2, whitened=True)], ids=lambda s: s.name
)
def test_interrupted_estimate_resumes_exactly(sampler: Sampler, tmp_path: Path) -> None:
    given = {
        "nbeta": values(1e3, 1e4),
        "gamma": values(30, 30),
        "sampler": sampler,
        "n_chains": 3,
        "burn_in": 20,
        "every": 2,
    }
    whole = CountingLoss(quadratic)
    expected = estimate(whole, **given)
    checkpoint = Checkpoint(tmp_path / "new" / "chains.safetensors", seconds=0)
    for fraction in (0.3, 0.5):  # during burn-in, and among the draws
        with pytest.raises(Interrupted):
            estimate(CountingLoss(quadratic, stop=round(fraction * whole.calls)), **given, checkpoint=checkpoint)
        assert [path.name for path in checkpoint.path.parent.iterdir()] == ["chains.safetensors"]
    rest = CountingLoss(quadratic)
    assert_equal(estimate(rest, **given, checkpoint=checkpoint), expected)
    assert rest.calls < 0.6 * whole.calls  # earlier steps were not repeated
    finished = CountingLoss(quadratic)
    assert_equal(estimate(finished, **given, checkpoint=checkpoint), expected)
    assert finished.calls < 20  # only the calls for the curvature and L(w*)


def test_minibatches_and_separate_evaluation_data_resume_exactly(tmp_path: Path) -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def half_square(p: dict[str, Tensor], x: object) -> Tensor:
        assert isinstance(x, Tensor)
        return (x @ p["w"]).square() / 2

    mapped = map_over_chains(half_square)
    given = {"gradient_data": Minibatches(x, size=4), "evaluation_data": FixedData(x), "draws": 30}
    whole = CountingLoss(mapped)
    expected = estimate(whole, **given)
    checkpoint = Checkpoint(tmp_path / "chains.safetensors", seconds=0)
    with pytest.raises(Interrupted):
        estimate(CountingLoss(mapped, stop=whole.calls - 20), **given, checkpoint=checkpoint)
    assert_equal(estimate(mapped, **given, checkpoint=checkpoint), expected)


def test_checkpoint_of_another_estimate_or_damaged_is_rejected(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "chains.safetensors", seconds=0)
    estimate(checkpoint=checkpoint)
    for other in ({"seeds": [1]}, {"draws": 60}, {"nbeta": values(2e3)}, {"sampler": HMC(leapfrogs=3)}):
        with pytest.raises(UserError, match="is the checkpoint of another estimate"):
            estimate(**other, checkpoint=checkpoint)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        estimate(checkpoint=checkpoint)
