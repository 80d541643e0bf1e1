"""The schedule of the learning rate: a linear warm-up, in which step 0 already moves, then a cosine."""

import math


def warmup_cosine(step: int, *, warmup_steps: int, max_steps: int, min_lr_factor: float) -> float:
    """Return the learning rate at an optimiser step (from 0), as a fraction of the peak rate.

    (step + 1) / warmup_steps during the warm-up, then from 1 down to `min_lr_factor` on half a cosine that ends at `max_steps`.
    The rate of step 0 is not zero, unlike that of Braun et al. (docs/reference/end_to_end_saes.md §4).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_lr_factor + (1 - min_lr_factor) * 0.5 * (1 + math.cos(math.pi * progress))
