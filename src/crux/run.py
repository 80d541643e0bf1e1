"""One job, top to bottom: subject and text, training, judgement, and what is left in the run folder and in MLflow."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crux import assemble, report
from crux.data.held_out import spread_batches
from crux.evaluation.mean import typical_activation
from crux.places import downstream_hooks, places
from crux.schema import Config, Task, to_plain
from crux.tracking.run import run_name, tracked
from crux.tracking.run_folder import RunFolder, find_unfinished, named_unfinished, new_path, same_run
from crux.training import follower
from crux.training.data import Feed
from crux.training.fit import Pace, checkpoint_step, fit
from crux.training.sae_module import NonFiniteLossError, SAEModule
from crux.training.tally import Tally
from crux.verdict import Verdict, judge


def run(config: Config, *, folder: Path | None) -> None:
    """Runs the job that the configuration describes; `folder` is the run folder that a sweep gives it."""
    match config.task:
        case Task.train:
            train(config, folder=folder)
        case Task.pretrain:
            from crux.pretrain import pretrain

            pretrain(config, folder=folder)
        case Task.report:
            from crux.compare import compare

            compare(config)


def train(config: Config, *, folder: Path | None) -> None:
    """Trains the SAEs of a run and judges them."""
    torch.manual_seed(config.seed)
    plain, pace = to_plain(config), assemble.pace(config)
    earlier = find_earlier(config, folder)
    if earlier is not None and earlier.done:  # a sweep that goes on
        print(f"{run_name(config)}: done before, in {earlier.path}")
        return
    start = checkpoint_step(earlier.checkpoint) if earlier is not None else 0

    subject = assemble.load(config, assemble.training_dtype(config))
    judged = (
        subject
        if subject.dtype is torch.float32 or follower.run_folder() is not None
        else assemble.load(config, torch.float32)
    )
    later = downstream_hooks(config, subject.n_layers)
    tokens = assemble.load_tokens(config)
    source = assemble.fed(config, subject=subject, tokens=tokens)

    def windows(stream: np.ndarray, n_tokens: int) -> list[Tensor]:  # no seed: the same for every SAE of a subject
        return list(spread_batches(stream, context=config.model.context, batch=config.trainer.batch, n_tokens=n_tokens))

    sample = windows(tokens.train, config.evaluation.tokens)
    if follower.run_folder() is not None:
        sample = sample[:1]  # shapes: the first process's weights and scales are what all start with
    hooks = {hook for place in places(config) for hook in place}
    typical = {hook: typical_activation(judged, hook=hook, batches=sample) for hook in hooks}
    sites = [site._replace(sae=site.sae.to(subject.device)) for site in assemble.build_sites(config, typical)]
    module = assemble.build_module(config, subject=subject, sites=sites, downstream_hooks=later)
    if follower.run_folder() is not None:
        assert earlier is not None
        follow(module, Feed(source, accumulate=config.trainer.accumulate), pace, earlier)
        return

    run_folder = earlier or RunFolder.create(folder or new_path(Path(config.output_dir), report.stem(config)), plain)
    run_folder.forget_after(start)
    with tracked(config, run_folder, n_latents=sites[0].sae.n_latents) as tracker:

        def judgement(n_tokens: int, *, short: bool) -> Verdict:
            return judge(
                judged,
                sites,
                batches=windows(tokens.held_out, n_tokens),
                means={hook: typical[hook].mean for hook in hooks},
                gradient=config.gradient.target.value if config.sae.beta is not None else None,
                short=short,
            )

        def short_judgement() -> dict[str, float]:
            found = judgement(config.evaluation.val_tokens, short=True).metrics
            return {f"val/{k}": v for k, v in found.items() if not k.endswith(("/pos0", "/rest"))}

        rate = fit(
            module,
            Feed(source, accumulate=config.trainer.accumulate),
            pace=pace,
            checkpoints=run_folder.checkpoint.parent,
            resume=run_folder.checkpoint if start else None,
            sinks=[run_folder.add_row, *([tracker.metrics] if tracker is not None else [])],
            judge=short_judgement,
            shown={"train/loss": "loss", "train/l0": "L0"},
            abandoned=None if tracker is None else lambda: tracker.end("FAILED"),
        )

        module.to(subject.device)
        verdict = judgement(config.evaluation.tokens, short=False)
        metrics = {f"final/{name}": value for name, value in (verdict.metrics | of_training(module, config)).items()}
        metrics |= {"final/downstream_positions": float(len(later))}
        metrics |= {"final/tokens_per_second": rate} if rate is not None else {}
        report.write_saes(run_folder, config, judged, sites, module.sparsity.weight.tolist())
        report.write_figures(run_folder, judged, sites, verdict)
        report.write_pages(run_folder, config, subject=judged, sites=sites, tokens=tokens, verdict=verdict)
        run_folder.write_metrics(metrics)
        if tracker is not None:
            tracker.metrics(config.trainer.max_steps, metrics)
            tracker.files(run_folder.path)
        run_folder.finish()
    report.show(config, run_folder, metrics)


def follow(module: SAEModule, feed: Feed, pace: Pace, folder: RunFolder) -> None:
    """The training in the process of a further device: what is told, saved and judged is the first one's."""
    start = checkpoint_step(folder.checkpoint)
    try:
        fit(
            module,
            feed,
            pace=pace,
            checkpoints=folder.checkpoint.parent,
            resume=folder.checkpoint if start else None,
            sinks=[],
            judge=None,
            shown={},
            abandoned=None,
        )
    except NonFiniteLossError:
        sys.exit(2)  # every process finds it at once; the first one tells it


def find_earlier(config: Config, folder: Path | None) -> RunFolder | None:
    """The unfinished run to go on with, if one is asked for; in a sweep, what its folder holds of this very job.

    In the process of a further device, the first one's run, just begun perhaps.
    """
    if (given := follower.run_folder()) is not None:
        return RunFolder(given)
    plain = to_plain(config)
    if config.resume_from is not None:
        return named_unfinished(Path(config.resume_from), plain)
    if folder is not None:
        return same_run(folder, plain)
    return find_unfinished(Path(config.output_dir), plain) if config.resume else None


def of_training(module: SAEModule, config: Config) -> dict[str, float]:
    """Of each SAE the latents that fired within the last N training tokens, count and share, and the λ that was found."""
    found: dict[str, float] = {}
    for i, (site, tally) in enumerate(zip(module.sites, module.tallies, strict=True)):
        prefix = "" if len(module.sites) == 1 else f"{site.write}/"
        assert isinstance(tally, Tally)
        alive, n = tally.alive(config.evaluation.alive_window)
        found |= {f"{prefix}alive_train_{n}": float(alive), f"{prefix}alive_train_{n}_frac": alive / site.sae.n_latents}
        if config.sae.k is None:
            found[f"{prefix}sparsity"] = float(module.sparsity.weight[i])
    return found
