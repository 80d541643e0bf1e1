"""A job that trains SAEs on a language model, top to bottom: subject and text, training, evaluation, and what it leaves."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crux.runs.life_cycle import ActiveRun, PreparedJob, RunOutcome, run_job
from crux.runs.run_folder import RunFolder
from crux.runs.tracked_run import TrackedRun
from crux.sae import results
from crux.sae.build import build_module, build_sites, training_data
from crux.sae.devices import count_devices
from crux.sae.evaluation.evaluate_sites import SitesEvaluation, evaluate_sites
from crux.sae.evaluation.typical_activation import measure_typical_activation
from crux.sae.loading import load_model, load_tokens
from crux.sae.options import SaeJob
from crux.sae.site_checks import downstream_hooks
from crux.sae.training.non_finite import NonFiniteLossError
from crux.sae.training.sae_module import SAEModule
from crux.text.held_out import spread_batches
from crux.training.callbacks import make_callbacks
from crux.training.data import Feed
from crux.training.devices import choose_device, choose_dtype, choose_hardware
from crux.training.fit import ShortEvaluations, checkpoint_step, fit


def run(config: SaeJob, *, folder: Path | None) -> RunFolder:
    """Train the SAEs of a job and evaluate them.

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.

    Raises:
        NonFiniteLossError: if the loss of a run stopped being a number; the job's other runs are finished all the same.
    """
    return run_job(config, folder=folder, prepare=lambda: SaeTraining(config).prepared_job())


class SaeTraining:
    """The training and evaluation of a job's SAEs, with everything loaded that they need."""

    def __init__(self, config: SaeJob) -> None:
        torch.manual_seed(config.seed)
        self.config, self.runs = config, config.per_sae() or {"": config}
        device = choose_device(config.trainer.accelerator)
        self.n_devices = count_devices(config.trainer, config.loss)
        dtype = choose_dtype(config.trainer.precision, device)
        self.subject = load_model(config.model, device=device, dtype=dtype)
        exact = dtype is torch.float32
        self.evaluated = self.subject if exact else load_model(config.model, device=device, dtype=torch.float32)
        self.later = downstream_hooks(config.loss, config.sites, n_layers=self.subject.n_layers)
        self.tokens = load_tokens(config.data, model=config.model, cache=config.cache)
        sample = self.windows(self.tokens.train, config.evaluation.tokens)
        hooks = {hook for site in config.sites for hook in site}
        typical = {hook: measure_typical_activation(self.evaluated, hook=hook, batches=sample) for hook in hooks}
        self.means = {hook: typical[hook].mean for hook in hooks}
        made = [
            site
            for one in self.runs.values()
            for site in build_sites(one.sae, one.sites, typical=typical, seed=config.seed)
        ]
        self.sites = [site._replace(sae=site.sae.to(self.subject.device)) for site in made]
        self.module = build_module(config, subject=self.subject, sites=self.sites, later=self.later)
        self.feed = Feed(
            training_data(config, subject=self.subject, tokens=self.tokens), accumulate=config.trainer.accumulate
        )

    def windows(self, stream: np.ndarray, n_tokens: int) -> list[Tensor]:
        """Return batches of a text that are the same for every SAE of a subject, whatever its seed."""
        model, batch = self.config.model, self.config.trainer.batch
        return list(spread_batches(stream, context=model.context, batch=batch, n_tokens=n_tokens))

    def prepared_job(self) -> PreparedJob:
        """Return what the job does."""
        return PreparedJob(
            name=results.file_stem(self.config.run_name()),
            execute=self.execute,
            last_row=lambda folder: checkpoint_step(folder.checkpoint),
            params={"n_latents": self.sites[0].sae.n_latents},
            run_configs={} if "" in self.runs else self.runs,
            failure=self.failure,
        )

    def execute(self, run: ActiveRun) -> Mapping[str, RunOutcome]:
        """Train, then evaluate the runs whose loss has stayed a number."""
        rate = self.fit(run)
        return {part.name: self.finish(part, rate) for part in run.tracked_runs if part.name not in self.module.failed}

    def failure(self) -> NonFiniteLossError:
        """Return the error that names the runs whose loss stopped being a number, and the steps."""
        at = ", ".join(f"step {step} ({name})" for name, step in self.module.failed.items())
        return NonFiniteLossError(at=at, kept="the other runs are finished")

    def saes_of(self, part: TrackedRun) -> range:
        """Return which of the job's SAEs are those of one run."""
        each, i = len(self.sites) // len(self.runs), list(self.runs).index(part.name)
        return range(i * each, (i + 1) * each)

    def fit(self, run: ActiveRun) -> float | None:
        """Train; return training tokens per second, None if no step was left to do."""
        many = bool(run.tracked_runs[0].name)
        shown = {f"{part.prefix}train/l0": f"L0({part.name})" for part in run.tracked_runs} if many else {}

        def add_row(step: int, row: dict[str, float]) -> None:
            run.add_row(step, row)
            mark_failed_runs(run, self.module)

        start = checkpoint_step(run.folder.checkpoint)
        rate = fit(
            self.module,
            self.feed,
            trainer=self.config.trainer,
            hardware=choose_hardware(
                self.config.trainer.accelerator, precision=self.config.trainer.precision, devices=self.n_devices
            ),
            items_per_step=self.config.tokens // self.config.trainer.max_steps,
            unit="tokens",
            checkpoints=run.folder.checkpoint.parent,
            resume=run.folder.checkpoint if start else None,
            sinks=[add_row],
            evaluations=ShortEvaluations(lambda: self.short_evaluations(run), self.config.trainer.val_every),
            bar_labels=shown or {"train/loss": "loss", "train/l0": "L0"},
            callbacks=make_callbacks(self.config.callbacks),
            on_abandon=run.abandon,
        )
        self.module.to(self.subject.device)
        self.module.end_failed_runs()  # a job that continues after its last step calls no hook
        mark_failed_runs(run, self.module)
        return rate

    def evaluate(self, part: TrackedRun, n_tokens: int, *, short: bool) -> SitesEvaluation:
        """Evaluate the SAEs of one run on held-out text."""
        return evaluate_sites(
            self.evaluated,
            [self.sites[i] for i in self.saes_of(part)],
            batches=self.windows(self.tokens.held_out, n_tokens),
            means=self.means,
            gradient=self.config.sae.gradient_labels,
            short=short,
        )

    def short_evaluations(self, run: ActiveRun) -> dict[str, float]:
        """Evaluate every run on little text, without ablations."""
        self.module.end_failed_runs()
        row: dict[str, float] = {}
        for part in run.tracked_runs:
            if part.name not in self.module.failed:
                metrics = self.evaluate(part, self.config.evaluation.val_tokens, short=True).metrics
                whole = {k: v for k, v in metrics.items() if not k.endswith(("/pos0", "/rest"))}
                row |= {f"{part.prefix}val/{k}": v for k, v in whole.items()}
        return row

    def finish(self, part: TrackedRun, rate: float | None) -> RunOutcome:
        """Evaluate one run, and write its SAEs, figures and pages."""
        config, saes = self.runs[part.name], self.saes_of(part)
        sites = [self.sites[i] for i in saes]
        evaluation = self.evaluate(part, config.evaluation.tokens, short=False)
        found = evaluation.metrics | self.training_metrics(config, saes)
        metrics = {f"final/{name}": value for name, value in found.items()}
        metrics |= without_counts(metrics)
        metrics |= {"final/downstream_positions": float(len(self.later))}
        metrics |= {"final/tokens_per_second": rate} if rate is not None else {}
        lambdas = self.module.sparsity.weight[saes.start : saes.stop].tolist()
        results.write_saes(part.folder, config, sites, lambdas)
        results.write_figures(part.folder, self.evaluated, sites, evaluation, terms=self.module.loss.row_labels())
        results.write_latents_pages(
            part.folder,
            config,
            subject=self.evaluated,
            sites=sites,
            evaluation=evaluation,
            batches=self.windows(self.tokens.held_out, config.evaluation.tokens),
        )
        return RunOutcome(metrics, lambda: results.print_evaluation(config.run_name(), config.hooks_read, metrics))

    def training_metrics(self, config: SaeJob, saes: range) -> dict[str, float]:
        """Return, per SAE, the number and share of latents that fired in the last N training tokens, and the final λ."""
        found: dict[str, float] = {}
        for i in saes:
            site = self.sites[i]
            prefix = "" if len(saes) == 1 else f"{site.write}/"
            alive, n = self.module.alive(i, window=config.evaluation.alive_window)
            found |= {
                f"{prefix}alive_train_{n}": float(alive),
                f"{prefix}alive_train_{n}_frac": alive / site.sae.n_latents,
            }
            if not config.sae.fixed_k:
                found[f"{prefix}sparsity"] = float(self.module.sparsity.weight[i])
        return found


def mark_failed_runs(run: ActiveRun, module: SAEModule) -> None:
    """End the runs whose loss has stopped being a number."""
    for part in run.tracked_runs:
        if (step := module.failed.get(part.name)) is not None:
            part.fail(NonFiniteLossError(at=f"step {step}", kept="the other runs go on"))


def without_counts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return `alive_heldout_<N>` and the like again without N: one column in MLflow for runs of all lengths."""
    pattern = r"(.*\balive_(?:heldout|train))_\d+(_frac)?"
    return {m[1] + (m[2] or ""): value for name, value in metrics.items() if (m := re.fullmatch(pattern, name))}
