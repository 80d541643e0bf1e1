"""Train the small networks of the experiments."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from crux.config.progress import track
from crux.runs.life_cycle import ActiveRun

LOG_EVERY = 500
"""Steps between rows of the run's history."""


def fit_by_adam(
    loss: Callable[[], Tensor], parameters: Iterable[Tensor], *, lr: float, steps: int, run: ActiveRun
) -> None:
    """Minimise a loss by Adam, with a learning rate that falls to zero as a cosine; `loss` draws new samples each time it is called."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in track(range(1, steps + 1), "training"):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0:
            run.add_row(step, {"train/loss": float(value.detach())})
