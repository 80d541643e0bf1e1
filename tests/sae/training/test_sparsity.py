"""The coefficient λ: constant, or steered to a target L0."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crux.sae.training.sparsity import Sparsity, Steering
from tests.support.small_runs import (
    draw_token_batches,
    make_gpt2,
    make_module,
    make_optimizer,
    make_sae,
    make_training_batches,
    run_fit,
)


def make_steered_sparsity(
    *, target: float = 10.0, max_steps: int = 10, n_saes: int = 2, start: float = 2.0
) -> Sparsity:
    return Sparsity(start, n_saes=n_saes, steering=Steering(target, max_steps))


def test_without_steering_lambda_is_constant() -> None:
    sparsity = Sparsity(0.7, n_saes=2, steering=None)
    for step in range(10):
        sparsity.observe(torch.tensor([1.0, 99.0]), step=step)
    assert torch.equal(sparsity.weight, torch.tensor([0.7, 0.7]))


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steer two SAEs, each with its own λ, for ten steps: one from L0 20 to 10, the other already at 10."""
    for name, value in {
        "PROPORTIONAL_GAIN": 1.5,
        "INTEGRAL_GAIN": 2.0,
        "NEW_L0_WEIGHT": 0.1,
        "MAX_ERROR": 0.2,
        "FINAL_GAIN": 0.5,
    }.items():
        monkeypatch.setattr(Sparsity, name, value)
    sparsity, log2 = make_steered_sparsity(), math.log(2)
    sparsity.observe(torch.tensor([20.0, 10.0]), step=0)
    assert torch.equal(sparsity.weight, torch.tensor([2.0, 2.0])), "λ should not change in the first tenth of the steps"
    sparsity.observe(
        torch.tensor([20.0, 5.0]), step=1
    )  # the wanted L0 is still 20; a tenth of the running mean of log L0 is new
    e = [0.0, -0.1 * log2]
    expected = [2 * math.exp(1.5 * x + 2 * x) for x in e]
    torch.testing.assert_close(sparsity.weight, torch.tensor(expected))
    sparsity.observe(torch.tensor([40.0, 5.0]), step=2)  # log 20 + 0.1 log 2, with log 10 + ½ log 2 wanted; −0.19 log 2
    expected = [2 * math.exp(1.5 * x + 2 * (x + y)) for x, y in zip([0.6 * log2, -0.19 * log2], e, strict=True)]
    assert 0.6 * log2 > 0.2 > 0.19 * log2
    expected[0] = 2 * math.exp(1.5 * 0.2 + 2 * 0.2)  # clipped
    torch.testing.assert_close(sparsity.weight, torch.tensor(expected))
    integral = sparsity.integral.clone()
    sparsity.observe(torch.tensor([1e6, 1e-3]), step=7)  # two thirds of the way from half of the steps to four fifths
    e = [0.2 * (1 - 0.5 * 2 / 3), -0.2 * (1 - 0.5 * 2 / 3)]
    expected = [2 * math.exp(1.5 * x + float(i) + 2 * x) for x, i in zip(e, integral, strict=True)]
    torch.testing.assert_close(sparsity.weight, torch.tensor(expected))


@pytest.mark.parametrize(("l0", "wanted"), [(40.0, [40, 40, 20, 10, 10]), (5.0, [10] * 5)])
def test_the_wanted_l0_falls_to_the_target_and_never_rises(l0: float, wanted: list[float]) -> None:
    sparsity = make_steered_sparsity(max_steps=100, n_saes=1)
    for step in range(10):
        sparsity.observe(torch.tensor([l0]), step=step)
    found = [float(sparsity._wanted_log_l0(progress).exp()) for progress in (0.0999999, 0.1, 0.2, 0.3, 0.7)]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_too_many_latents_raise_lambda_and_too_few_lower_it() -> None:
    sparsity = make_steered_sparsity(n_saes=3)
    for step in range(7):
        sparsity.observe(torch.tensor([30.0, 10.0, 0.0]), step=step)  # also if no latent fires
    more, same, fewer = sparsity.weight.tolist()
    assert fewer < same == 2.0 < more
    assert math.isfinite(fewer)
    assert fewer > 0


def test_lambda_only_moves_between_the_first_tenth_and_the_last_fifth() -> None:
    sparsity, weights = make_steered_sparsity(max_steps=100), [torch.full((2,), 2.0)]
    for step in range(100):
        sparsity.observe(torch.tensor([30.0, 3.0]), step=step)
        weights.append(sparsity.weight.clone())
    moved = [step for step in range(100) if not torch.equal(weights[step], weights[step + 1])]
    assert moved == list(range(10, 81)), "the last move is to the mean at which it is frozen"


def test_lambda_is_frozen_at_the_running_mean_of_its_logarithm() -> None:
    sparsity, logs = make_steered_sparsity(max_steps=100, n_saes=1), list[float]()
    for step in range(81):
        sparsity.observe(torch.tensor([10.0 * math.exp(0.4 * math.sin(step))]), step=step)
        logs.append(math.log(float(sparsity.weight) / 2.0))
    mean = 0.0
    for log in logs[10:80]:
        mean += (log - mean) * 20 / 100
    assert logs[80] == pytest.approx(mean, abs=1e-5)
    assert abs(logs[80] - logs[79]) > 1e-3


def test_all_state_of_the_controller_is_in_buffers() -> None:
    def l0(step: int) -> Tensor:
        return torch.tensor([30.0, 4.0]) * (1 + 0.3 * math.sin(step))

    whole, first, second = (
        make_steered_sparsity(max_steps=40),
        make_steered_sparsity(max_steps=40),
        make_steered_sparsity(max_steps=40),
    )
    for step in range(40):
        whole.observe(l0(step), step=step)
    for step in range(17):
        first.observe(l0(step), step=step)
    second.load_state_dict(first.state_dict())
    for step in range(17, 40):
        second.observe(l0(step), step=step)
    assert torch.equal(second.weight, whole.weight)
    assert first.weight[0] > 2.0 > first.weight[1]
    assert not torch.equal(second.weight, first.weight)


@pytest.mark.parametrize("max_steps", [200, 400, 1200])
@pytest.mark.parametrize("elasticity", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("off", [1 / 1.6, 1.0, 1.6])
def test_a_slowly_responding_network_reaches_the_target(max_steps: int, elasticity: float, off: float) -> None:
    """Simulate a log L0 that follows −elasticity · log λ with a lag of 20 steps, starting at `off` times the target."""
    sparsity = make_steered_sparsity(target=30.0, max_steps=max_steps, n_saes=1)
    log_l0 = start = math.log(30.0 * off)
    for step in range(max_steps):
        sparsity.observe(torch.tensor([math.exp(log_l0)]), step=step)
        settled = start - elasticity * math.log(float(sparsity.weight) / sparsity.start)
        log_l0 += (settled - log_l0) / 20
    assert math.exp(log_l0) == pytest.approx(30.0, rel=0.05)


def train(tmp_path: Path, *, target: float, accumulate: int = 1, max_steps: int = 200) -> list[dict[str, float]]:
    subject, rows = make_gpt2(), list[dict[str, float]]()
    module = make_module(
        "local",
        subject,
        optimizer=make_optimizer(lr=5e-3),
        max_steps=max_steps,
        log_every=max_steps // 20,
        sae=make_sae(subject, n_latents=64),
        sparsity=0.1,
        steering=Steering(target, max_steps),
    )
    tokens = draw_token_batches(subject, n=max_steps * accumulate, batch=8 // accumulate)
    batches = make_training_batches("local", subject, tokens)
    run_fit(module, batches, checkpoints=tmp_path, accumulate=accumulate, sinks=[lambda _, row: rows.append(row)])
    return rows


@pytest.mark.parametrize("target", [6.0, 12.0])
def test_a_run_reaches_its_target(target: float, tmp_path: Path) -> None:
    rows = train(tmp_path, target=target)
    print([(round(r["train/l0"], 2), round(r["train/lambda"], 3)) for r in rows])
    assert rows[-1]["train/l0"] == pytest.approx(target, rel=0.1)
    assert rows[-1]["train/lambda"] == pytest.approx(rows[-2]["train/lambda"])
    for row in rows:
        total = row["train/mse"] + row["train/lambda"] * row["train/sparsity"]
        assert row["train/loss"] == pytest.approx(total, rel=0.02), "λ of each step, not the next one's"


def test_micro_batches_count_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """λ changes once per optimiser step, by the mean L0 of its micro-batches."""
    observed: list[tuple[int, float]] = []
    monkeypatch.setattr(Sparsity, "observe", lambda self, l0, *, step: observed.append((step, float(l0))))
    rows = train(tmp_path, target=6.0, accumulate=4, max_steps=20)
    assert [step for step, _ in observed] == list(range(20))
    for (_, l0), row in zip(observed, rows, strict=True):
        assert l0 == pytest.approx(row["train/l0"], rel=1e-5)
