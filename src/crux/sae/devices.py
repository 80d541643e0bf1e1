"""The devices of a job that trains SAEs: one device, or several with one process each."""

import torch

from crux.config.errors import UserError
from crux.sae.checks import check_shares
from crux.sae.losses.options import LossOptions
from crux.sae.options import SaeTrainer, Strategy
from crux.training.devices import choose_device


def count_devices(trainer: SaeTrainer, loss: LossOptions) -> int:
    """Return the number of devices on which the run trains, with one process each.

    Raises:
        UserError: if there are fewer devices, or the batch cannot be divided equally among them.
    """
    if trainer.strategy is Strategy.single:
        return 1
    requested, on_cpu = trainer.devices, choose_device(trainer.accelerator).type == "cpu"
    n_gpus = torch.cuda.device_count()
    if requested is None and on_cpu:
        raise UserError(
            "trainer=ddp: torch sees no GPU here; on the CPU, give the number of processes: trainer.devices=2"
        )
    if requested is not None and not on_cpu and requested > n_gpus:
        raise UserError(f"trainer.devices={requested}: torch sees {n_gpus} GPU{'s' if n_gpus > 1 else ''} here")
    n = requested if requested is not None else n_gpus
    check_shares(trainer, loss, devices=n)
    return n
