"""One job, top to bottom: subject and text, training, judgement, and what is left in the run folder and in MLflow."""

from pathlib import Path

import torch

from crux import assemble, report
from crux.checks import downstream_hooks
from crux.data.held_out import spread_batches
from crux.evaluation.judge import Judgement, evaluate
from crux.evaluation.mean import typical_activation
from crux.formats import saelens
from crux.schema import Config, Task, to_plain
from crux.tracking.run import tracked
from crux.tracking.run_folder import RunFolder, find_unfinished, named_unfinished, new_path
from crux.training.data import Feed
from crux.training.fit import checkpoint_step, fit
from crux.training.sae_module import SAEModule


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
    """Trains one SAE and judges it."""
    torch.manual_seed(config.seed)
    plain = to_plain(config)
    earlier = find_earlier(config)
    start = checkpoint_step(earlier.checkpoint) if earlier is not None else 0

    subject = assemble.load(config, assemble.training_dtype(config))
    judged = subject if subject.dtype is torch.float32 else assemble.load(config, torch.float32)
    subject.check(config.hook_point)
    later = downstream_hooks(config, subject.n_layers)
    tokens = assemble.load_tokens(config)
    batches = assemble.training_batches(config, tokens)
    sample = spread_batches(  # no seed: mean ablation is the same for every SAE of a subject
        tokens.train,
        context=config.model.context,
        batch=config.trainer.batch,
        n_tokens=config.evaluation.tokens,
    )
    typical = typical_activation(judged, hook=config.hook_point, batches=sample)
    sae = assemble.build_sae(config, d_model=typical.mean.shape[0], typical=typical).to(subject.device)
    module = assemble.build_module(config, subject=subject, sae=sae, downstream_hooks=later)
    source = assemble.fed(config, subject=subject, batches=batches)

    run_folder = earlier or RunFolder.create(folder or new_path(Path(config.output_dir), report.stem(config)), plain)
    run_folder.forget_after(start)
    with tracked(config, run_folder, n_latents=sae.n_latents) as tracker:

        def judge(n_tokens: int, *, ablations: bool) -> Judgement:
            held_out = spread_batches(
                tokens.held_out, context=config.model.context, batch=config.trainer.batch, n_tokens=n_tokens
            )
            return evaluate(
                judged,
                sae.folded(),
                hook=config.hook_point,
                batches=held_out,
                mean_activation=typical.mean,
                ablations=ablations,
            )

        def short_judgement() -> dict[str, float]:
            found = judge(config.evaluation.val_tokens, ablations=False).metrics
            return {f"val/{k}": v for k, v in found.items() if not k.endswith(("/pos0", "/rest"))}

        rate = fit(
            module,
            Feed(source, accumulate=config.trainer.accumulate),
            pace=assemble.pace(config),
            checkpoints=run_folder.checkpoint.parent,
            resume=run_folder.checkpoint if start else None,
            sinks=[run_folder.add_row, *([tracker.metrics] if tracker is not None else [])],
            judge=short_judgement,
            shown={"train/loss": "loss", "train/l0": "L0"},
        )

        sae = sae.to(subject.device)
        verdict = judge(config.evaluation.tokens, ablations=True)
        metrics = {f"final/{name}": value for name, value in verdict.metrics.items()}
        metrics |= alive_in_training(module, config.evaluation.alive_window)
        metrics |= {"final/downstream_positions": float(len(later))}
        metrics |= {"final/tokens_per_second": rate} if rate is not None else {}
        saelens.save(sae, run_folder.path / "sae", report.sae_metadata(config, judged))
        report.write_figures(run_folder, config, judged, verdict)
        report.write_page(run_folder, config, subject=judged, sae=sae.folded(), tokens=tokens, verdict=verdict)
        run_folder.write_metrics(metrics)
        if tracker is not None:
            tracker.metrics(config.trainer.max_steps, metrics)
            tracker.files(run_folder.path)
        run_folder.finish()
    report.show(config, run_folder, metrics)


def find_earlier(config: Config) -> RunFolder | None:
    """The unfinished run to go on with, if one is asked for."""
    plain = to_plain(config)
    if config.resume_from is not None:
        return named_unfinished(Path(config.resume_from), plain)
    return find_unfinished(Path(config.output_dir), plain) if config.resume else None


def alive_in_training(module: SAEModule, window: int) -> dict[str, float]:
    """Latents that fired within the last N training tokens: count and share."""
    alive, n = module.alive(window)
    return {f"final/alive_train_{n}": float(alive), f"final/alive_train_{n}_frac": alive / module.sae.n_latents}
