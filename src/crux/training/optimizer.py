"""Build the optimiser of every training run: Adam or AdamW with a linear warm-up and a cosine schedule."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from crux.config.schema import Adam
from crux.training.schedule import warmup_cosine


def build_optimizer(
    parameter_groups: Iterable[Mapping[str, Any]], *, options: Adam, decoupled: bool, max_steps: int
) -> OptimizerLRScheduler:
    """Return the optimiser and its schedule in the form that Lightning expects.

    Args:
        parameter_groups: torch's parameter groups, each with `params` and the settings that differ from `options`. Groups with the
            same settings are merged, because the fused optimiser runs once per group.
        decoupled: True for AdamW's weight decay; False adds it to the gradient, as Adam does.
        max_steps: the optimiser step at which the cosine ends.
    """
    merged: dict[tuple[tuple[str, Any], ...], list[torch.nn.Parameter]] = {}
    for group in parameter_groups:
        settings = tuple((key, value) for key, value in group.items() if key != "params")
        merged.setdefault(settings, []).extend(group["params"])
    optimizer_class = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = optimizer_class(
        [{"params": params, **dict(settings)} for settings, params in merged.items()],
        lr=options.lr,
        betas=(options.betas[0], options.betas[1]),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )

    def lr_factor(step: int) -> float:
        return warmup_cosine(
            step, warmup_steps=options.warmup_steps, max_steps=max_steps, min_lr_factor=options.min_lr_factor
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
