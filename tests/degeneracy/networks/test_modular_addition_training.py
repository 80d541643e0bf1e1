"""Tests of training on modular addition: it learns, stops when all held-out pairs are right, and can be resumed exactly."""

import math
from pathlib import Path

import pytest
import torch

from crux.config.errors import UserError
from crux.config.schema import Accelerator, Adam, Trainer
from crux.degeneracy.basis_options import AdditionSizes
from crux.degeneracy.networks.modular_addition import ModularAddition, Pairs, split_pairs
from crux.degeneracy.networks.modular_addition_module import (
    AdditionModule,
    RepeatedBatch,
    addition_loss,
    evaluate_addition,
)
from crux.training.data import Feed
from crux.training.devices import CPU
from crux.training.fit import fit

P = 7
Rows = list[tuple[int, dict[str, float]]]


class KilledError(Exception):
    """Stands for SIGKILL."""


def run(
    folder: Path,
    steps: int,
    *,
    share: float = 0.9,
    lr: float = 1e-2,
    stop: bool = False,
    resume: bool = False,
    kill_at: int = -1,
) -> tuple[ModularAddition, Rows]:
    tokens = split_pairs(P, train_share=share, seed=0)
    network = ModularAddition(AdditionSizes(P, 16, 2, 32))
    network.init_weights(torch.Generator().manual_seed(0))
    optimizer = Adam(lr, [0.9, 0.98], 1e-8, 0.1, warmup_steps=10, min_lr_factor=1.0)
    trainer = Trainer(False, Accelerator.cpu, max_steps=steps, log_every=5, checkpoint_every=10)
    rows: Rows = []

    def add_row(step: int, row: dict[str, float]) -> None:
        if step == kill_at:
            raise KilledError
        rows.append((step, row))

    fit(
        AdditionModule(network, test=tokens.test, optimizer=optimizer, trainer=trainer, stop_when_right=stop),
        Feed(RepeatedBatch(tokens.train, n_batches=steps), accumulate=1),
        trainer=trainer, hardware=CPU, items_per_step=len(tokens.train), unit="pairs",
        checkpoints=folder, resume=folder / "last.ckpt" if resume else None,
        sinks=[add_row], evaluations=None, bar_labels={}, callbacks=[], on_abandon=None,
    )  # fmt: skip
    return network, rows


def test_training_learns_and_logs_it(tmp_path: Path) -> None:
    network, rows = run(tmp_path, 200)
    assert [step for step, _ in rows] == list(range(5, 201, 5))
    assert rows[0][1]["train/loss"] > 0.5 * math.log(P)
    assert rows[-1][1]["train/loss"] < 0.01
    tokens = split_pairs(P, train_share=0.9, seed=0)
    found = evaluate_addition(network, tokens.test)
    assert rows[-1][1]["val/accuracy"] == found.accuracy
    assert rows[-1][1]["val/loss"] == pytest.approx(found.loss)
    logits = network(tokens.test)
    right = (logits.argmax(1) == (tokens.test[:, 0] + tokens.test[:, 1]) % P).float().mean()
    assert found.accuracy == pytest.approx(float(right))


def test_training_stops_when_every_held_out_pair_is_right(tmp_path: Path) -> None:
    """Only one pair is held out, so that it is right early."""
    _, rows = run(tmp_path, 400, share=0.98, stop=True)
    assert rows[-1][1]["val/accuracy"] == 1
    assert all(row["val/accuracy"] < 1 for _, row in rows[:-1])
    _, every = run(tmp_path / "on", 100, share=0.98, stop=False)
    assert every[-1][0] == 100


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, rows = run(tmp_path / "whole", 60)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", 60, kill_at=35)
    resumed, later = run(tmp_path / "cut", 60, resume=True)
    assert later[0][0] == 35
    assert later == [row for row in rows if row[0] >= 35]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_non_finite_loss_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stopped being a finite number by step \d+; try a lower optimizer.lr"):
        run(tmp_path, 30, lr=1e30)
    assert not (tmp_path / "last.ckpt").exists()


def test_cross_entropy_is_computed_in_float64() -> None:
    """The loss is 1e-9, which float32 rounds to 0."""
    tokens = torch.tensor([[1, 2, P]])
    logits = torch.zeros(1, P).index_fill(1, Pairs.sums(tokens), 22.5)
    assert float(addition_loss(logits, tokens)) == pytest.approx((P - 1) * math.exp(-22.5), rel=1e-6)
    assert float(torch.nn.functional.cross_entropy(logits, Pairs.sums(tokens))) == 0
