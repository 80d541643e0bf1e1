"""The optimiser of every training: Adam or AdamW under a warm-up and a cosine."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from crux.config.schema import Adam
from crux.training.schedule import warmup_cosine


def build_optimizer(
    parameter_groups: Iterable[Mapping[str, Any]], *, options: Adam, decoupled: bool, max_steps: int
) -> OptimizerLRScheduler:
    """Return the optimiser with its schedule, as Lightning wants them.

    Args:
        parameter_groups: torch's, each with `params` and what differs from `options`. Groups with the same settings become one, as
            the fused optimiser runs once per group.
        decoupled: whether the weight decay is (AdamW) or is added to the gradient (Adam).
        max_steps: where the cosine ends.
    """
    merged: dict[tuple[tuple[str, Any], ...], list[torch.nn.Parameter]] = {}
    for group in parameter_groups:
        settings = tuple((key, value) for key, value in group.items() if key != "params")
        merged.setdefault(settings, []).extend(group["params"])
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind(
        [{"params": params, **dict(settings)} for settings, params in merged.items()],
        lr=options.lr,
        betas=(options.betas[0], options.betas[1]),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )

    def share(step: int) -> float:
        return warmup_cosine(
            step, warmup_steps=options.warmup_steps, max_steps=max_steps, min_lr_factor=options.min_lr_factor
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
