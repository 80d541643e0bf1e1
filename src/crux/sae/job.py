"""The job that trains SAEs on a language model: it loads subject and text, trains, evaluates, and writes the results."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crux.runs.life_cycle import ActiveRun, PreparedJob, RunOutcome, run_job
from crux.runs.record import TextDataset
from crux.runs.run_folder import RunFolder
from crux.runs.tracked_run import TrackedRun
from crux.sae import results
from crux.sae.build import build_module, build_sites, training_data
from crux.sae.devices import count_devices
from crux.sae.evaluation.divergence import describe_divergence
from crux.sae.evaluation.evaluate_sites import SitesEvaluation, evaluate_sites
from crux.sae.evaluation.typical_activation import measure_typical_activation
from crux.sae.loading import check_embedding, load_model, load_tokens, text_source, write_text_report
from crux.sae.options import SaeJob
from crux.sae.site_checks import downstream_hooks
from crux.sae.training.non_finite import NonFiniteLossError
from crux.sae.training.sae_module import SAEModule
from crux.text.held_out import spread_batches
from crux.text.sources import describe_source
from crux.training.callbacks import make_callbacks
from crux.training.checkpoints import checkpoint_step
from crux.training.data import Feed
from crux.training.devices import choose_device, choose_dtype, choose_hardware
from crux.training.fit import ShortEvaluations, fit


def run(config: SaeJob, *, folder: Path | None) -> RunFolder:
    """Train the SAEs of a job and evaluate them.

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.

    Raises:
        NonFiniteLossError: if the loss of a run is no longer finite; the other runs of the job are finished nevertheless.
    """
    return run_job(config, folder=folder, prepare=lambda: SaeTraining(config).prepared_job())


class SaeTraining:
    """The training and evaluation of a job's SAEs. Creating it loads everything that they need."""

    def __init__(self, config: SaeJob) -> None:
        torch.manual_seed(config.seed)
        self.config, self.runs = config, config.per_sae() or {"": config}
        device = choose_device(config.trainer.accelerator)
        self.n_devices = count_devices(config.trainer, config.loss)
        dtype = choose_dtype(config.trainer.precision, device)
        # the text first: it needs the tokenizer alone, and a mistake in it is found before the network is loaded
        self.tokens = load_tokens(config.data, model=config.model, cache=config.cache)
        self.subject = load_model(config.model, device=device, dtype=dtype)
        check_embedding(self.tokens, self.subject)
        if (n := len(self.tokens.held_out)) < config.evaluation.tokens:
            print(
                f"evaluation.tokens={config.evaluation.tokens:,}: the held-out text has {n:,} tokens", file=sys.stderr
            )
        self.evaluation_subject = self.subject  # metrics need float32, also if the training runs in a lower precision
        if dtype is not torch.float32:
            self.evaluation_subject = load_model(config.model, device=device, dtype=torch.float32)
        self.later = downstream_hooks(config.loss, config.sites, n_layers=self.subject.n_layers)
        sample = self.spread_windows(self.tokens.train, config.evaluation.tokens)
        hooks = {hook for site in config.sites for hook in site}
        typical = {
            hook: measure_typical_activation(self.evaluation_subject, hook=hook, batches=sample) for hook in hooks
        }
        self.mean_activations = {hook: typical[hook].mean for hook in hooks}
        sites = [
            site
            for single in self.runs.values()
            for site in build_sites(single.sae, single.sites, typical=typical, seed=config.seed)
        ]
        self.sites = [site._replace(sae=site.sae.to(self.subject.device)) for site in sites]
        self.module = build_module(config, subject=self.subject, sites=self.sites, later=self.later)
        self.feed = Feed(
            training_data(config, subject=self.subject, tokens=self.tokens), accumulate=config.trainer.accumulate
        )

    def spread_windows(self, stream: np.ndarray, n_tokens: int) -> list[Tensor]:
        """Return batches of token windows that are spread over a text; they do not depend on the seed."""
        model, batch = self.config.model, self.config.trainer.batch
        return list(spread_batches(stream, context=model.context, batch=batch, n_tokens=n_tokens))

    def prepared_job(self) -> PreparedJob:
        """Return the job's functions and settings for the common life cycle."""
        return PreparedJob(
            name=results.file_stem(self.config.run_name()),
            execute=self.execute,
            last_row=lambda folder: checkpoint_step(folder.checkpoint),
            params={"n_latents": self.sites[0].sae.n_latents},
            run_configs={} if "" in self.runs else self.runs,
            dataset=TextDataset(
                describe_source(text_source(self.config.data))[:200],
                self.tokens.path.stem[:32],
                len(self.tokens.train),
                str(self.tokens.path),
            ),
            failure=self.failure,
        )

    def execute(self, run: ActiveRun) -> Mapping[str, RunOutcome]:
        """Train all runs, then evaluate those whose loss has stayed finite."""
        for tracked_run in run.tracked_runs:
            write_text_report(self.tokens, tracked_run.folder.path)
        rate = self.fit(run)
        return {
            tracked_run.name: self.finish(tracked_run, rate)
            for tracked_run in run.tracked_runs
            if tracked_run.name not in self.module.failed
        }

    def failure(self) -> NonFiniteLossError:
        """Return the error that names the failed runs and the steps at which their loss was no longer finite."""
        return self.module.runs.error(self.module.failed, kept="the other runs are finished")

    def sae_indices(self, tracked_run: TrackedRun) -> range:
        """Return the indices of the SAEs that belong to one run."""
        per_run, i = len(self.sites) // len(self.runs), list(self.runs).index(tracked_run.name)
        return range(i * per_run, (i + 1) * per_run)

    def fit(self, run: ActiveRun) -> float | None:
        """Train, and return the training tokens per second, or None if no step was left to do."""
        bar_labels = {"train/loss": "loss", "train/l0": "L0"}
        if run.tracked_runs[0].name:  # one of several runs; the only run of a job has no name
            bar_labels = {
                f"{tracked_run.prefix}train/l0": f"L0({tracked_run.name})" for tracked_run in run.tracked_runs
            }

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
            bar_labels=bar_labels,
            callbacks=make_callbacks(self.config.callbacks),
            on_abandon=run.abandon,
        )
        self.module.to(self.subject.device)
        self.module.end_failed_runs()  # no hook is called if a resumed job has no steps left
        mark_failed_runs(run, self.module)
        return rate

    def evaluate(self, tracked_run: TrackedRun, n_tokens: int, *, short: bool) -> SitesEvaluation:
        """Evaluate the SAEs of one run on held-out text."""
        return evaluate_sites(
            self.evaluation_subject,
            [self.sites[i] for i in self.sae_indices(tracked_run)],
            batches=self.spread_windows(self.tokens.held_out, n_tokens),
            means=self.mean_activations,
            gradient=self.config.sae.gradient_labels,
            short=short,
        )

    def short_evaluations(self, run: ActiveRun) -> dict[str, float]:
        """Evaluate every run on a little text, without ablations."""
        self.module.end_failed_runs()
        row: dict[str, float] = {}
        for tracked_run in run.tracked_runs:
            if tracked_run.name not in self.module.failed:
                metrics = self.evaluate(tracked_run, self.config.evaluation.val_tokens, short=True).metrics
                all_positions = {k: v for k, v in metrics.items() if not k.endswith(("/pos0", "/rest"))}
                row |= {f"{tracked_run.prefix}val/{k}": v for k, v in all_positions.items()}
        return row

    def finish(self, tracked_run: TrackedRun, rate: float | None) -> RunOutcome:
        """Evaluate one run, and write its SAEs, figures and pages of latents."""
        config, saes = self.runs[tracked_run.name], self.sae_indices(tracked_run)
        sites = [self.sites[i] for i in saes]
        evaluation = self.evaluate(tracked_run, config.evaluation.tokens, short=False)
        final = evaluation.metrics | self.training_metrics(config, saes)
        metrics = {f"final/{name}": value for name, value in final.items()}
        metrics |= without_counts(metrics)
        metrics |= {"final/downstream_positions": float(len(self.later))}
        metrics |= {"final/tokens_per_second": rate} if rate is not None else {}
        metrics |= {"final/diverged": 1.0} if describe_divergence(metrics) else {}
        lambdas = self.module.sparsity.weight[saes.start : saes.stop].tolist()
        results.write_saes(tracked_run.folder, config, sites, lambdas)
        results.write_figures(
            tracked_run.folder, self.evaluation_subject, sites, evaluation, terms=self.module.loss.row_labels()
        )
        results.write_latents_pages(
            tracked_run.folder,
            config,
            subject=self.evaluation_subject,
            sites=sites,
            evaluation=evaluation,
            batches=self.spread_windows(self.tokens.held_out, config.evaluation.tokens),
        )
        return RunOutcome(
            metrics,
            lambda: results.print_evaluation(config.run_name(), config.hooks_read, metrics),
            description=results.describe_evaluation(config.hooks_read, metrics),
        )

    def training_metrics(self, config: SaeJob, saes: range) -> dict[str, float]:
        """Return, per SAE, the number and share of latents that fired in the last N training tokens, and the final λ."""
        metrics: dict[str, float] = {}
        for i in saes:
            site = self.sites[i]
            prefix = "" if len(saes) == 1 else f"{site.write}/"
            alive, n = self.module.alive(i, window=config.evaluation.alive_window)
            metrics |= {
                f"{prefix}alive_train_{n}": float(alive),
                f"{prefix}alive_train_{n}_frac": alive / site.sae.n_latents,
            }
            if not config.sae.fixed_k:
                metrics[f"{prefix}sparsity"] = float(self.module.sparsity.weight[i])
        return metrics


def mark_failed_runs(run: ActiveRun, module: SAEModule) -> None:
    """Mark the runs whose loss is no longer finite as failed."""
    for tracked_run in run.tracked_runs:
        if tracked_run.name in module.failed:
            tracked_run.fail(module.runs.error([tracked_run.name], kept="the other runs continue"))


def without_counts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return `alive_heldout_<N>`, `alive_train_<N>` and their shares without the number N in their names.

    Then MLflow has one column for runs of all lengths.
    """
    pattern = r"(.*\balive_(?:heldout|train))_\d+(_frac)?"
    return {m[1] + (m[2] or ""): value for name, value in metrics.items() if (m := re.fullmatch(pattern, name))}
