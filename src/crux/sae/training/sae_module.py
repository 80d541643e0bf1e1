"""What training any SAE shares: optimiser, schedule, sparsity, clipping, counters, logging, the watch for non-finite numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import lightning as L
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE, Codes
from crux.sae.architectures.site import Site
from crux.sae.losses.auxk import auxk
from crux.sae.losses.mse import mse
from crux.sae.training.recipe import Common
from crux.sae.training.tally import Tally
from crux.training import ranks
from crux.training.data import Activations
from crux.training.schedule import scheduled


class NonFiniteLossError(UserError):
    """The loss or its gradient stopped being a number: the recipe is too bold for the data."""

    def __init__(self, *, at: str, kept: str) -> None:
        super().__init__(
            f"the loss or its gradient stopped being a finite number at {at}; try a lower optimizer.lr, a lower "
            f"optimizer.clip or loss.max_norm ({kept})"
        )


RANKS_APART = 1_000_003
"""Between the seeds of two ranks' labels: no run's seed is another one's rank."""


class _Rows(L.Callback):
    """Logs a row every `log_every` steps. A callback, because Lightning writes checkpoints before a module's own hook:

    a checkpoint without the row of its step would lose that row to a kill in between.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SAEModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % pl_module.recipe.log_every:
            return
        row = pl_module.read_row()
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)


class SAEModule(L.LightningModule):
    """Trains the SAEs of one or several hook points; a subclass says what a batch is and what the loss.

    Nothing in a step waits for the device: terms are summed on it and read every `log_every` steps. Of several `runs`, one whose
    loss stops being a number ends there: its SAE is emptied (all zeros) when that is seen, and the others go on as if it were
    none of theirs.

    Args:
        sites: the SAEs and where they stand, in the network's order.
        sparsity: λ, the coefficient of each SAE's penalty.
        auxk: None: no such loss.
        max_norm: tokens with a longer activation are left out of the loss; activation units.
        seed: of what the training draws (labels); batches have their own.
        runs: the SAEs' names, where each is a run of its own.
    """

    first_bad_step: Tensor
    """Of each run, counted from 1; -1: none yet."""
    grad_norm: Tensor

    def __init__(self, sites: Sequence[Site], **common: Unpack[Common]) -> None:
        super().__init__()
        self.sites, self.recipe, self.sparsity = tuple(sites), common["recipe"], common["sparsity"]
        self.auxk, self.max_norm = common["auxk"], common["max_norm"]
        self.saes = nn.ModuleList(site.sae for site in sites)
        self.tallies = nn.ModuleList(Tally(site.sae.n_latents) for site in sites)
        self.runs = common["runs"]
        assert len(self.runs) in (0, len(self.sites))
        n_runs = len(self.runs) or 1
        self.register_buffer("first_bad_step", torch.full((n_runs,), -1, dtype=torch.long))
        self.register_buffer("grad_norm", torch.zeros(n_runs), persistent=False)
        self.ended: dict[str, int] = {}  # the runs that have ended early, and their first bad step
        self._seed, self._generator = common["seed"], None
        self._generator_state: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._micro_batches = 0
        self._l0: list[Tensor] = []

    @property
    def generator(self) -> torch.Generator:
        """The source of drawn labels, on the device; its state is in the checkpoint."""
        if self._generator is None:  # made in the first step: a checkpoint is loaded before the module is on its device
            self._generator = torch.Generator(self.device).manual_seed(self._seed + RANKS_APART * ranks.rank())
            if self._generator_state is not None:
                self._generator.set_state(self._generator_state)
        return self._generator

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        optimizer = make(
            self._by_rate(),
            lr=recipe.lr,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=True,
        )

        return scheduled(
            optimizer,
            warmup_steps=recipe.warmup_steps,
            max_steps=recipe.max_steps,
            min_lr_factor=recipe.min_lr_factor,
        )

    def _by_rate(self) -> list[dict[str, Any]]:
        """The parameters, in groups for the optimiser. No weight decay for log θ: it would draw θ to 1."""
        thresholds = [p for name, p in self.saes.named_parameters() if name.endswith("log_threshold")]
        if not thresholds or self.recipe.threshold_rate is None:
            return [{"params": list(self.saes.parameters())}]
        rest = [p for name, p in self.saes.named_parameters() if not name.endswith("log_threshold")]
        faster = {"params": thresholds, "lr": self.recipe.lr * self.recipe.threshold_rate, "weight_decay": 0.0}
        return [{"params": rest}, faster]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Once an optimiser step, whose micro-batches λ sees as one; each SAE by itself, as if it were trained alone."""
        norms = torch.stack([self._clip(site.sae) for site in self.sites])
        self.grad_norm = norms if self.runs else norms.max()[None]
        self._watch(self.grad_norm)
        self.sparsity.observe(torch.stack(self._l0).mean(0), step=self.global_step)
        self._l0 = []

    def _clip(self, sae: SAE) -> Tensor:
        if not sae.W_dec.requires_grad:  # of a run that has ended
            return torch.zeros((), device=self.device)
        return nn.utils.clip_grad_norm_(sae.parameters(), self.recipe.clip)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for site in self.sites:
            site.sae.advance(self.global_step / self.recipe.max_steps)

    def tokens_in_loss(
        self, x: Float[Tensor, "tokens d"], kept: Bool[Tensor, "tokens"] | None
    ) -> Float[Tensor, "tokens"] | None:
        """1 for a token that the loss counts, 0 for one that it leaves out; None where it counts all."""
        if self.max_norm is not None:
            short = x.norm(dim=-1) <= self.max_norm
            kept = short if kept is None else kept & short
        return None if kept is None else kept.float()

    def local_loss(self, batch: Activations, *, reconstruction: float) -> Float[Tensor, ""]:
        """reconstruction · MSE(x̂, x) + each SAE's own terms, on activations of any order."""
        losses: list[Tensor] = []
        passed: list[Codes] = []
        terms: dict[str, list[Tensor]] = {}
        for i, site in enumerate(self.sites):
            x = batch.values[site.read].to(site.sae.W_enc.dtype)
            target = batch.values[site.write].to(x.dtype)
            weight = self.tokens_in_loss(x, None)
            codes = site.sae.encode(x, batch.gradients.get(site.write))
            x_hat = site.sae.decode(codes)
            error = self.error(site.sae, x_hat, target, weight)
            losses.append(reconstruction * error + self.own_terms(i, codes, x_hat, target, weight, terms))
            terms.setdefault("mse", []).append(error)
            passed.append(codes)
        return self.told(self.by_run(losses), passed, terms).sum()

    def by_run(self, values: Sequence[Tensor]) -> Float[Tensor, "runs"]:
        """Values that are one an SAE, or one in all, as one a run: those of one run's SAEs add up."""
        stacked = torch.stack(list(values))
        return stacked if self.runs else stacked.sum()[None]

    @staticmethod
    def error(sae: SAE, x_hat: Tensor, target: Tensor, weight: Tensor | None) -> Float[Tensor, ""]:
        """The MSE of normalised activations, so that λ means the same whatever their scale."""
        return mse(x_hat, target, weight=weight) * sae.output_scale**2

    def own_terms(
        self,
        i: int,
        codes: Codes,
        x_hat: Float[Tensor, "tokens d"],
        target: Float[Tensor, "tokens d"],
        weight: Float[Tensor, "tokens"] | None,
        terms: dict[str, list[Tensor]],
    ) -> Float[Tensor, ""]:
        """λ · penalty + the architecture's auxiliary term + AuxK of the i-th SAE; noted in `terms`."""
        sae = self.sites[i].sae
        found = {"sparsity": sae.penalty(codes, weight=weight)}
        loss = self.sparsity.weight[i] * found["sparsity"]
        if type(sae).auxiliary is not SAE.auxiliary:
            found["auxiliary"] = sae.auxiliary(codes, target, weight=weight)
            loss = loss + found["auxiliary"]
        if self.auxk is not None:
            found["auxk"] = auxk(
                codes.pre,
                sae.dictionary(),
                (target - x_hat) * sae.output_scale,
                dead=self.tallies[i].dead(after=self.auxk.dead_after),  # pyright: ignore[reportCallIssue]
                k=min(self.auxk.k or sae.d_model // 2, sae.n_latents),
                weight=weight,
                together=ranks.mean,
            )
            loss = loss + self.auxk.coefficient * found["auxk"]
        for name, value in found.items():
            terms.setdefault(name, []).append(value)
        return loss

    @torch.no_grad()
    def told(
        self, loss: Float[Tensor, "runs"], passed: Sequence[Codes], terms: Mapping[str, Sequence[Tensor]]
    ) -> Float[Tensor, "runs"]:
        """Counts what the step showed, on the device; hands the loss on.

        `passed` and each of `terms` are by SAE, but for terms of one run's network as a whole, of which there is one.
        """
        l0: list[Tensor] = []
        for site, tally, codes in zip(self.sites, self.tallies, passed, strict=True):
            fires = codes.c != 0
            tally.count(fires)  # pyright: ignore[reportCallIssue]
            site.sae.observe(codes)
            ranks.mean_buffers(site.sae, site.sae.RUNNING_MEANS)
            l0.append(fires.sum() / len(fires))
        row = dict(ranks.mean_row({"loss": list(loss), **terms, "l0": l0}))
        self._l0.append(torch.stack(list(row["l0"])))
        self._watch(torch.stack(list(row["loss"])))
        if self.sparsity.steering is not None:
            row["lambda"] = list(self.sparsity.weight)
        for name, values in row.items():
            stacked = torch.stack(list(values))
            if self.runs:
                self._add(name, stacked)
                continue
            self._add(name, stacked.sum() if name == "l0" else stacked.mean())  # as it is judged: all SAEs' latents
            if len(values) > 1:
                for site, value in zip(self.sites, values, strict=True):
                    self._add(f"{name}/{site.write}", value)
        self._micro_batches += 1
        return loss

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value.detach()

    def _watch(self, value: Float[Tensor, "runs"]) -> None:
        bad = ~torch.isfinite(value) & (self.first_bad_step < 0)
        step = self.global_step + 1  # as the history counts: the row of step n is written after n steps
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)

    def configure_callbacks(self) -> list[L.Callback]:
        return [_Rows()]

    def read_row(self) -> dict[str, float]:
        """Means since the last row, as `train/<term>` or, of several runs, `<run>/train/<term>`: one transfer from the device."""
        means = {name: sums / self._micro_batches for name, sums in self._sums.items()} | {"grad_norm": self.grad_norm}
        columns = [value.double().expand(len(self.first_bad_step)) for value in (*means.values(), self.first_bad_step)]
        *values, first_bad = torch.stack(columns).tolist()
        self._end([int(step) for step in first_bad])
        self._sums, self._micro_batches = {}, 0
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        row: dict[str, float] = {}
        for i, run in enumerate(self.runs or ("",)):
            if run not in self.ended:
                prefix = f"{run}/train/" if run else "train/"
                row |= {prefix + name: value[i] for name, value in zip(means, values, strict=True)} | {
                    f"{prefix}lr": lr
                }
        return row

    def settle(self) -> None:
        """Ends the runs that have gone wrong by now. Waits for the device.

        Raises:
            NonFiniteLossError: where no run is left.
        """
        self._end(self.first_bad_step.tolist())

    def _end(self, first_bad: Sequence[int]) -> None:
        if min(first_bad) >= 0:
            at = [
                f"step {step}" + (f" ({run})" if run else "")
                for run, step in zip(self.runs or ("",), first_bad, strict=True)
            ]
            raise NonFiniteLossError(at=", ".join(at), kept="the last good checkpoint is kept")
        for i, (run, step) in enumerate(zip(self.runs, first_bad, strict=True) if self.runs else ()):
            if step >= 0 and run not in self.ended:
                self.ended[run] = step
                self._empty(i)

    @torch.no_grad()
    def _empty(self, i: int) -> None:
        """Leaves nothing of the i-th SAE that could be non-finite, or move."""
        states = self.trainer.optimizers[0].state
        for parameter in self.sites[i].sae.parameters():
            parameter.requires_grad_(False).grad = None
            for value in (parameter, *states.get(parameter, {}).values()):
                value.zero_()  # in place: the checkpoint that is being written holds these very tensors
        for sums in self._sums.values():
            sums[i] = 0.0

    def on_train_start(self) -> None:
        """A checkpoint may hold runs that have ended."""
        self.settle()

    def on_train_end(self) -> None:
        """Steps since the last row may have gone wrong too."""
        self.settle()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint with a non-finite number in it is never written; what the next row sums up goes with it."""
        self.settle()
        checkpoint["row"] = {"sums": self._sums, "micro_batches": self._micro_batches}
        state = self.generator.get_state()
        if ranks.n_ranks() > 1:  # each rank draws its own labels
            state = ranks.from_all(state.to(self.device)).cpu()
        checkpoint["generator"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        row = checkpoint["row"]
        self._sums = {name: value.to(self.device) for name, value in row["sums"].items()}
        self._micro_batches = row["micro_batches"]
        states = torch.atleast_2d(checkpoint["generator"].cpu())
        if len(states) != ranks.n_ranks():
            raise UserError(
                f"the checkpoint is of a run over {len(states)} devices, here are {ranks.n_ranks()}; give trainer.devices={len(states)}"
            )
        self._generator = None
        self._generator_state = states[ranks.rank()].clone()  # set_state reads from where the storage begins
