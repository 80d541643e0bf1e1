"""The optimiser of every training run."""

from typing import Any

import torch
from torch import nn

from crux.config.schema import Adam
from crux.training.optimizer import build_optimizer


def make_parameters(n: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2)) for _ in range(n)]


def test_groups_with_equal_settings_are_merged_and_follow_the_schedule() -> None:
    a, b, c, d = make_parameters(4)
    options = Adam(1e-2, [0.8, 0.9], 1e-6, 0.1, warmup_steps=4, min_lr_factor=0.5)
    groups = [{"params": [a]}, {"params": [b], "lr": 0.05}, {"params": [c]}, {"params": [d], "lr": 0.05}]
    # Any, because Lightning's type is a union of everything that a module may return
    built: Any = build_optimizer(groups, options=options, decoupled=True, max_steps=10)
    optimizer = built["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [[id(a), id(c)], [id(b), id(d)]]
    first, second = optimizer.param_groups
    assert first["betas"] == (0.8, 0.9)
    assert (first["eps"], first["weight_decay"], second["weight_decay"]) == (1e-6, 0.1, 0.1)
    assert (first["lr"], second["lr"]) == (1e-2 / 4, 0.05 / 4)  # the first of four warm-up steps
    for _ in range(10):
        optimizer.step()
        built["lr_scheduler"]["scheduler"].step()
    assert first["lr"] == 0.5e-2  # the end of the cosine: min_lr_factor times the peak
