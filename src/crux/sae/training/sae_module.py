"""The Lightning module that trains SAEs: one step, from the batch to the row of the history."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from crux.config.schema import Optimizer, OptimizerName
from crux.sae.architectures.options import Auxk
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.losses.loss import Loss
from crux.sae.losses.step import TrainingStep
from crux.sae.training.drawn_labels import DrawnLabels
from crux.sae.training.job_runs import JobRuns, zero_and_freeze
from crux.sae.training.non_finite import NonFiniteWatch
from crux.sae.training.passes import Passes
from crux.sae.training.running_row import LogRows, RunningRow
from crux.sae.training.sparsity import Sparsity
from crux.sae.training.tally import Tally
from crux.training import ranks
from crux.training.optimizer import build_optimizer


class SAEModule(L.LightningModule):
    """Trains SAEs at one or several hook points, with any loss and on any network.

    A step never waits for the device: terms are summed there and read every `log_every` steps. If the loss of one of several
    `runs` is no longer finite, that run fails: when the next row or checkpoint is written, its SAE is set to zero, and the other
    runs continue unchanged.

    Args:
        sites: the SAEs and their hook points, in the network's order.
        passes: the forward passes of a batch.
        sparsity: λ, the coefficient of each SAE's penalty.
        seed: seed of the drawn labels; the batches have a separate seed.
        runs: one name per SAE if each SAE is a separate run; empty if all are one run.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        passes: Passes,
        loss: Loss[Any],
        sparsity: Sparsity,
        optimizer: Optimizer,
        auxk: Auxk,
        max_steps: int,
        log_every: int,
        seed: int,
        runs: Sequence[str],
    ) -> None:
        super().__init__()
        assert len(runs) in (0, len(sites))
        self.sites, self.passes, self.loss, self.sparsity = tuple(sites), passes, loss, sparsity
        self.optimizer_options, self.auxk, self.max_steps, self.log_every = optimizer, auxk, max_steps, log_every
        self.saes = nn.ModuleList(site.sae for site in sites)
        self._tallies = [Tally(site.sae.n_latents) for site in sites]
        self.tallies = nn.ModuleList(self._tallies)
        self.drawn_labels, self.runs = DrawnLabels(seed), JobRuns(runs)
        self.watch = NonFiniteWatch(len(self.runs.names))
        self.row = RunningRow([site.write for site in sites], separate=self.runs.separate)
        self.grad_norm: Tensor
        self.register_buffer("grad_norm", torch.zeros(len(self.runs.names)), persistent=False)
        self._l0: list[Tensor] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for site in self.sites:
            site.sae.advance(self.global_step / self.max_steps)

    def training_step(self, batch: Any, batch_idx: int) -> Float[Tensor, ""]:
        forward = self.passes.run(batch, self.sites, generator=self.drawn_labels.generator(self.device))
        dead = [tally.dead(after=self.auxk.dead_after) for tally in self._tallies if self.auxk.coefficient > 0]
        step = TrainingStep(
            forward, self.sites, separate=self.runs.separate, sparsity=self.sparsity.weight, auxk=self.auxk, dead=dead
        )
        loss = self.loss(step)
        self.record_step(step, loss)
        return loss.sum()

    @torch.no_grad()
    def record_step(self, step: TrainingStep, loss: Float[Tensor, "runs"]) -> None:
        """Update counters, running means and the row of the history, on the device."""
        l0: list[Tensor] = []
        for site, tally, passed in zip(self.sites, self._tallies, step.forward.sae_passes, strict=True):
            firings, n_firing = passed.codes.count_firing()
            tally.count(firings > 0, n_tokens=len(n_firing))
            site.sae.observe(passed.codes)
            ranks.mean_buffers(site.sae, site.sae.RUNNING_MEANS)
            l0.append(firings.sum() / len(n_firing))
        row = dict(ranks.mean_row({"loss": list(loss), **step.terms, "l0": l0}))
        self._l0.append(torch.stack(list(row["l0"])))
        if (counted := step.counted_tokens()) is not None:
            self.watch.check_tokens(counted)
        self.watch.check(torch.stack(list(row["loss"])), step=self.global_step + 1)
        if self.sparsity.steering is not None:
            row["lambda"] = list(self.sparsity.weight)
        self.row.add(row)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        lr = self.optimizer_options.lr
        groups = [group for site in self.sites for group in site.sae.parameter_groups(lr)]
        options = self.optimizer_options
        decoupled = options.name is OptimizerName.adamw
        return build_optimizer(groups, options=options, decoupled=decoupled, max_steps=self.max_steps)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient of each SAE separately, and update λ with the mean L0 of the micro-batches of this optimiser step."""
        norms = torch.stack([self._clip(site.sae) for site in self.sites])
        self.grad_norm = norms if self.runs.separate else norms.max()[None]
        self.watch.check(self.grad_norm, step=self.global_step + 1)
        self.sparsity.observe(torch.stack(self._l0).mean(0), step=self.global_step)
        self._l0 = []

    def _clip(self, sae: SAE) -> Tensor:
        """Clip the gradient of an SAE, and return its norm before clipping."""
        if not sae.W_dec.requires_grad:  # the SAE of a failed run is frozen
            return torch.zeros((), device=self.device)
        return nn.utils.clip_grad_norm_(sae.parameters(), self.optimizer_options.clip)

    def configure_callbacks(self) -> list[L.Callback]:
        return [LogRows(self.read_row, every=self.log_every)]

    def read_row(self) -> dict[str, float]:
        """Return the means since the last row for all runs that have not failed, with one transfer from the device."""
        means = self.row.means() | {"grad_norm": self.grad_norm}
        n_runs = len(self.runs.names)
        columns = [value.double().expand(n_runs) for value in (*means.values(), self.watch.first_bad_step)]
        *values, first_bad = torch.stack(columns).tolist()
        self._end_runs([int(step) for step in first_bad])
        self.row.clear()
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        return self.runs.row(dict(zip(means, values, strict=True)) | {"lr": [lr] * n_runs})

    def alive(self, i: int, *, window: int) -> tuple[int, int]:
        """Return the number of latents of the i-th SAE that fired in the last `window` training tokens, and the number of these tokens."""
        return self._tallies[i].alive(window)

    @property
    def failed(self) -> dict[str, int]:
        """The first bad step of each run that has failed, by name."""
        return self.runs.failed

    def end_failed_runs(self) -> None:
        """End the runs that have had a non-finite loss or gradient. This waits for the device.

        Raises:
            NonFiniteLossError: if no run is left.
        """
        self._end_runs(self.watch.first_bad_step.tolist())

    def _end_runs(self, first_bad: Sequence[int]) -> None:
        """End the runs that have a first bad step (−1: none) and have not been ended before."""
        for i in self.runs.mark_failed(first_bad, no_tokens=self.watch.no_tokens.tolist):
            zero_and_freeze(self.sites[i].sae, self.trainer.optimizers[0])
            self.row.forget_run(i)

    def on_train_start(self) -> None:
        """Move the row of a checkpoint to the device, and end the runs that have already failed according to the checkpoint."""
        self.row.move_to(self.device)
        self.end_failed_runs()

    def on_train_end(self) -> None:
        """End the runs that have failed since the last row."""
        self.end_failed_runs()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the unfinished row and the state of the generator to a checkpoint.

        A checkpoint never contains a non-finite number, since failed runs are ended first.
        """
        self.end_failed_runs()
        checkpoint["row"] = self.row.state()
        checkpoint["generator"] = self.drawn_labels.state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.row.load(checkpoint["row"])  # before the module is on its device
        self.drawn_labels.load(checkpoint["generator"])
