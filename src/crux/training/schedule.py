"""The learning rate: a linear warm-up that does not waste step 0, then a cosine."""

import math

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler


def warmup_cosine(step: int, *, warmup_steps: int, max_steps: int, min_lr_factor: float) -> float:
    """Share of the peak rate at optimiser step `step` (from 0).

    (step + 1) / warmup_steps while warming up (the authors' first step has rate 0, reference §1.4), then from 1 down to
    `min_lr_factor` on half a cosine that ends at `max_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_lr_factor + (1 - min_lr_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def scheduled(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, max_steps: int, min_lr_factor: float
) -> OptimizerLRScheduler:
    """The optimiser, its rates times `warmup_cosine`, as Lightning wants them."""

    def share(step: int) -> float:
        return warmup_cosine(step, warmup_steps=warmup_steps, max_steps=max_steps, min_lr_factor=min_lr_factor)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
