"""One job, top to bottom: subject and text, training, judgement, and what is left in the run folder and in MLflow."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crux.config.schema import Config, Task, to_plain
from crux.runs.part import Part, parts_of, start_tracking
from crux.runs.run_folder import RunFolder, new_path
from crux.runs.tracking import earlier_run, run_name
from crux.sae import assemble, report
from crux.sae.evaluation.evaluate_sites import Verdict, judge
from crux.sae.evaluation.mean import typical_activation
from crux.sae.many import alone
from crux.sae.sites import downstream_hooks, places
from crux.sae.training.sae_module import NonFiniteLossError, SAEModule
from crux.sae.training.tally import Tally
from crux.text.held_out import spread_batches
from crux.toy.checks import of_toy_model
from crux.training.data import Feed
from crux.training.fit import checkpoint_step, fit


def run(config: Config, *, folder: Path | None) -> None:
    """Runs the job that the configuration describes; `folder` is the run folder that a sweep gives it."""
    match config.task:
        case Task.train if of_toy_model(config):
            from crux.toy.sae_job import train_on_toy

            train_on_toy(config, folder=folder)
        case Task.train:
            train(config, folder=folder)
        case Task.pretrain:
            from crux.pretraining.pretrain import pretrain

            pretrain(config, folder=folder)
        case Task.report:
            from crux.sae.sweeps.report import write_report
            from crux.sae.sweeps.runs import sweep_folder

            named = config.sweep or config.sweep_name or ""
            write_report(sweep_folder(Path(config.output_dir), named), at=config.report_l0).show()
        case Task.toy:
            from crux.toy.experiments.run_toy import run_toy

            run_toy(config, folder=folder)
        case Task.llc | Task.degeneracy | Task.interaction_basis:
            from crux.runs.named import run_named

            run_named(config, folder=folder)


def train(config: Config, *, folder: Path | None) -> None:
    """Trains the SAEs of a job and judges them.

    Raises:
        NonFiniteLossError: where the loss of a run stopped being a number; its other runs are finished all the same.
    """
    torch.manual_seed(config.seed)
    plain, pace = to_plain(config), assemble.pace(config)
    earlier = earlier_run(config, folder)
    if earlier is not None and earlier.done:  # a sweep that goes on
        print(f"{run_name(config)}: done before, in {earlier.path}")
        return
    start = checkpoint_step(earlier.checkpoint) if earlier is not None else 0

    subject = assemble.load(config, assemble.training_dtype(config))
    judged = subject if subject.dtype is torch.float32 else assemble.load(config, torch.float32)
    later = downstream_hooks(config, subject.n_layers)
    tokens = assemble.load_tokens(config)
    source = assemble.fed(config, subject=subject, tokens=tokens)

    def windows(stream: np.ndarray, n_tokens: int) -> list[Tensor]:  # no seed: the same for every SAE of a subject
        return list(spread_batches(stream, context=config.model.context, batch=config.trainer.batch, n_tokens=n_tokens))

    sample = windows(tokens.train, config.evaluation.tokens)
    hooks = {hook for place in places(config) for hook in place}
    typical = {hook: typical_activation(judged, hook=hook, batches=sample) for hook in hooks}
    runs = alone(config) or {"": config}
    made = [site for one in runs.values() for site in assemble.build_sites(one, typical)]
    sites = [site._replace(sae=site.sae.to(subject.device)) for site in made]
    module = assemble.build_module(config, subject=subject, sites=sites, downstream_hooks=later)

    job = earlier or RunFolder.create(folder or new_path(Path(config.output_dir), report.stem(config)), plain)
    parts = parts_of(job, runs, n_saes=len(sites), anew=earlier is None)
    for part in parts:
        part.folder.forget_after(start)
    with ExitStack() as ends:
        start_tracking(config, job, parts, ends, n_latents=sites[0].sae.n_latents)

        def judgement(part: Part, n_tokens: int, *, short: bool) -> Verdict:
            return judge(
                judged,
                [sites[i] for i in part.saes],
                batches=windows(tokens.held_out, n_tokens),
                means={hook: typical[hook].mean for hook in hooks},
                gradient=config.gradient.target.value if config.sae.beta is not None else None,
                short=short,
            )

        def short_judgements() -> dict[str, float]:
            module.settle()
            row: dict[str, float] = {}
            for part in parts:
                if part.name not in module.ended:
                    found = judgement(part, config.evaluation.val_tokens, short=True).metrics
                    whole = {k: v for k, v in found.items() if not k.endswith(("/pos0", "/rest"))}
                    row |= {f"{part.prefix}val/{k}": v for k, v in whole.items()}
            return row

        def add_row(step: int, row: dict[str, float]) -> None:
            for part in parts:
                part.add_row(step, row)
            fail_ended(parts, module)

        rate = fit(
            module,
            Feed(source, accumulate=config.trainer.accumulate),
            pace=pace,
            checkpoints=job.checkpoint.parent,
            resume=job.checkpoint if start else None,
            sinks=[add_row],
            judge=short_judgements,
            shown=shown(parts),
            abandoned=lambda: abandon(parts),
        )

        module.to(subject.device)
        module.settle()  # of a job that goes on behind its last step, no hook was called
        fail_ended(parts, module)
        results: list[tuple[Part, dict[str, float]]] = []
        for part in parts:
            if part.name in module.ended:
                continue
            own = [sites[i] for i in part.saes]
            verdict = judgement(part, config.evaluation.tokens, short=False)
            metrics = verdict.metrics | of_training(module, part)
            metrics = {f"final/{name}": value for name, value in metrics.items()}
            metrics |= without_counts(metrics)
            metrics |= {"final/downstream_positions": float(len(later))}
            metrics |= {"final/tokens_per_second": rate} if rate is not None else {}
            lambdas = module.sparsity.weight[part.saes.start : part.saes.stop].tolist()
            report.write_saes(part.folder, part.config, own, lambdas)
            report.write_figures(part.folder, judged, own, verdict)
            report.write_pages(part.folder, part.config, subject=judged, sites=own, tokens=tokens, verdict=verdict)
            part.folder.write_metrics(metrics)
            if part.tracker is not None:
                part.tracker.metrics(0, metrics)  # no course, one value: MLflow draws bars
                part.tracker.files(part.folder.path)
            results.append((part, metrics))
        for part, _ in results:
            part.finish()
        if not module.ended and not job.done:
            job.finish()
        for part, metrics in results:
            report.show(part.config, part.folder, metrics)
        if module.ended:
            at = ", ".join(f"step {step} ({name})" for name, step in module.ended.items())
            raise NonFiniteLossError(at=at, kept="the other runs are finished")


def fail_ended(parts: list[Part], module: SAEModule) -> None:
    """Ends the runs whose loss has stopped being a number."""
    for part in parts:
        if (step := module.ended.get(part.name)) is not None:
            part.fail(NonFiniteLossError(at=f"step {step}", kept="the other runs go on"))


def abandon(parts: list[Part]) -> None:
    """The end in MLflow of a run that has to be ended from outside of its training."""
    for part in parts:
        if part.tracker is not None:
            part.tracker.end("FAILED")


def shown(parts: list[Part]) -> dict[str, str]:
    """What the progress bar shows: loss and L0, or each run's L0."""
    if not parts[0].name:
        return {"train/loss": "loss", "train/l0": "L0"}
    return {f"{part.prefix}train/l0": f"L0({part.name})" for part in parts}


def of_training(module: SAEModule, part: Part) -> dict[str, float]:
    """Of each SAE the latents that fired within the last N training tokens, count and share, and the λ that was found."""
    found: dict[str, float] = {}
    for i in part.saes:
        site, tally = module.sites[i], module.tallies[i]
        prefix = "" if len(part.saes) == 1 else f"{site.write}/"
        assert isinstance(tally, Tally)
        alive, n = tally.alive(part.config.evaluation.alive_window)
        found |= {f"{prefix}alive_train_{n}": float(alive), f"{prefix}alive_train_{n}_frac": alive / site.sae.n_latents}
        if part.config.sae.k is None:
            found[f"{prefix}sparsity"] = float(module.sparsity.weight[i])
    return found


def without_counts(metrics: Mapping[str, float]) -> dict[str, float]:
    """`alive_heldout_<N>` and the like again without the number of tokens: one column in MLflow for runs of all lengths."""
    pattern = r"(.*\balive_(?:heldout|train))_\d+(_frac)?"
    return {m[1] + (m[2] or ""): value for name, value in metrics.items() if (m := re.fullmatch(pattern, name))}
