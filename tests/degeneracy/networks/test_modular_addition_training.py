"""Tests of training on modular addition: the network learns, training stops when all held-out pairs are right, and resumes exactly."""

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
"""Modulus; also the token "="."""

Rows = list[tuple[int, dict[str, float]]]
"""(step, metrics) of each row of the history."""


class KilledError(Exception):
    """Stands for SIGKILL."""


def train(
    folder: Path,
    steps: int,
    *,
    share: float = 0.9,
    lr: float = 1e-2,
    stop: bool = False,
    resume: bool = False,
    kill_at: int = -1,
) -> tuple[ModularAddition, Rows]:
    """Train a small network, and return it with the logged rows.

    Args:
        steps: largest number of steps; rows are logged every 5, checkpoints written every 10.
        share: share of the pairs used for training.
        stop: stop once every held-out pair is right.
        kill_at: the step at which training is killed when it logs its row; -1: never.
    """
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
    network, rows = train(tmp_path, 200)
    assert [step for step, _ in rows] == list(range(5, 201, 5))
    assert rows[0][1]["train/loss"] > 0.5 * math.log(P)  # log p is the loss of a guess
    assert rows[-1][1]["train/loss"] < 0.01
    tokens = split_pairs(P, train_share=0.9, seed=0)
    found = evaluate_addition(network, tokens.test)
    assert rows[-1][1]["val/accuracy"] == found.accuracy
    assert rows[-1][1]["val/loss"] == pytest.approx(found.loss)
    logits = network(tokens.test)
    right = (logits.argmax(1) == (tokens.test[:, 0] + tokens.test[:, 1]) % P).float().mean()
    assert found.accuracy == pytest.approx(float(right))


def test_training_stops_when_every_held_out_pair_is_right(tmp_path: Path) -> None:
    """Only one of the 49 pairs is held out, so that all are right early."""
    _, rows = train(tmp_path, 400, share=0.98, stop=True)
    assert rows[-1][1]["val/accuracy"] == 1
    assert all(row["val/accuracy"] < 1 for _, row in rows[:-1])
    assert rows[-1][0] < 100
    _, rows_without_stop = train(tmp_path / "without_stop", 100, share=0.98, stop=False)
    assert rows_without_stop[-1][0] == 100


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, rows = train(tmp_path / "whole", 60)
    with pytest.raises(KilledError):
        train(tmp_path / "cut", 60, kill_at=35)
    resumed, rows_after = train(tmp_path / "cut", 60, resume=True)
    assert rows_after[0][0] == 35  # the first row after the checkpoint of step 30
    assert rows_after == [row for row in rows if row[0] >= 35]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_non_finite_loss_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stopped being a finite number by step \d+; try a lower optimizer.lr"):
        train(tmp_path, 30, lr=1e30)
    assert not (tmp_path / "last.ckpt").exists()


def test_cross_entropy_is_computed_in_float64() -> None:
    """The loss is 1e-9, which float32 rounds to 0."""
    tokens = torch.tensor([[1, 2, P]])
    logits = torch.zeros(1, P).index_fill(1, Pairs.sums(tokens), 22.5)  # loss: log(1 + (p − 1) e^-22.5)
    assert float(addition_loss(logits, tokens)) == pytest.approx((P - 1) * math.exp(-22.5), rel=1e-6)
    assert float(torch.nn.functional.cross_entropy(logits, Pairs.sums(tokens))) == 0
