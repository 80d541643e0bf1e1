"""What a finished run shows: figures, the page of its latents, the table on the screen."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from crux import assemble
from crux.data.held_out import spread_batches
from crux.data.tokens import Tokens
from crux.evaluation.judge import Judgement
from crux.evaluation.latents import choose_latents, logit_effects, strongest_contexts
from crux.figures.densities import density_histogram
from crux.figures.downstream import downstream
from crux.figures.latents_page import latents_page
from crux.figures.loss_curves import loss_curves
from crux.saes.sae import SAE
from crux.schema import Config
from crux.subjects.hooks import parse_hook
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.tracking.run import run_name, tracking_uri
from crux.tracking.run_folder import RunFolder, write_whole

TERMS = {
    "train/loss": "loss",
    "train/kl": "KL (nats/token)",
    "train/downstream": "downstream MSE",
    "train/mse": "MSE",
    "train/sparsity": "‖c‖₁ / d_model",
}


def stem(config: Config) -> str:
    """A run's name for the file system: `e2e_ds_L6_s1.5`."""
    return re.sub(r"[^\w.+-]+", "_", run_name(config).replace("λ=", "s"))


def sae_metadata(config: Config, subject: Subject) -> dict[str, Any]:
    """What must be known of the SAE before it may be judged again."""
    return {
        "model_name": str(assemble.model_source(config)),
        "hook_name": config.hook_point,
        "process_weights": subject.process_weights,
        "context_size": config.model.context,
        "prepend_bos": False,
        "dataset_path": assemble.text_name(config),
        "loss": config.loss.name,
        "sparsity": config.sparsity,
        "seed": config.seed,
    }


def write_figures(folder: RunFolder, config: Config, subject: Subject, verdict: Judgement) -> None:
    """Loss curves, downstream reconstruction and firing densities, as PNG."""
    hook = parse_hook(config.hook_point)
    drawn = {
        "loss_curves": loss_curves(folder.history(), terms=TERMS, l0="train/l0"),
        "downstream": downstream(
            verdict.metrics,
            hook=config.hook_point,
            n_layers=subject.n_layers,
            at=hook.layer + (hook.kind == "resid_post"),
        ),
        "densities": density_histogram(verdict.densities.numpy(), n_tokens=verdict.n_tokens),
    }
    for name, figure in drawn.items():
        _save(figure, folder.path / "figures" / f"{name}.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)


def write_page(
    folder: RunFolder, config: Config, *, subject: Subject, sae: SAE, tokens: Tokens, verdict: Judgement
) -> None:
    """`latents.html`: densities, strongest contexts and logit effects of some latents."""
    if config.evaluation.latents == 0:
        return
    latents = choose_latents(verdict.densities, verdict.maxima, n=config.evaluation.latents)
    if len(latents) == 0:
        return  # nothing fires
    before = 12
    contexts = strongest_contexts(
        subject,
        sae,
        hook=config.hook_point,
        batches=spread_batches(
            tokens.held_out,
            context=config.model.context,
            batch=config.trainer.batch,
            n_tokens=config.evaluation.tokens,
        ),
        latents=latents,
        n_contexts=8,
        before=before,
        after=8,
    )
    effects = logit_effects(sae.dictionary()[latents.to(subject.device)], subject.unembed, n_top=6)
    tokenizer, _ = load_tokenizer(assemble.model_source(config))
    page = latents_page(
        title=run_name(config),
        facts={
            "subject": str(assemble.model_source(config)),
            "hook point": config.hook_point,
            "L0": f"{verdict.metrics['l0']:.1f}",
            "CE loss increase": f"{verdict.metrics['ce_increase']:+.3f} nats",
            "latents": f"{len(latents)} of {sae.n_latents}",
            "held-out tokens": f"{verdict.n_tokens:,}",
        },
        decode=lambda token: tokenizer.decode([token], skip_special_tokens=False),
        latents=contexts.latents.numpy(),
        densities=contexts.densities.numpy(),
        tokens=contexts.tokens.numpy(),
        activations=contexts.activations.numpy(),
        peak=before,
        promoted=effects.promoted.numpy(),
        promoted_effects=effects.promoted_effects.numpy(),
        suppressed=effects.suppressed.numpy(),
        suppressed_effects=effects.suppressed_effects.numpy(),
    )
    write_whole(folder.path / "latents.html", page)


ROWS = {
    "ce_increase": ("CE loss increase", "nats/token, positive is worse"),
    "ce_clean": ("CE clean", "nats/token"),
    "kl": ("KL(clean ‖ spliced)", "nats/token"),
    "l0": ("L0", "latents/token"),
    "loss_recovered_mean": ("loss recovered, mean ablation", "share"),
    "loss_recovered_zero": ("loss recovered, zero ablation", "share"),
    "explained_variance": ("explained variance", "share"),
    "mse": ("MSE", "activation²"),
    "cosine": ("cosine(x̂, x)", ""),
    "norm_ratio": ("norm ratio ‖x̂‖/‖x‖", ""),
    "top1_agreement": ("top-1 agreement", "share of tokens"),
}


def show(config: Config, folder: RunFolder, metrics: Mapping[str, float]) -> None:
    """The judgement as one table, where everything lies, and how to open MLflow."""
    table = Table(title=f"{run_name(config)} on held-out text", title_justify="left")
    for column, justify in (
        ("", "left"),
        ("all", "right"),
        ("position 0", "right"),
        ("rest", "right"),
        ("unit", "left"),
    ):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    for name, (label, unit) in ROWS.items():
        table.add_row(label, *_cells(metrics, f"final/{name}"), unit)
    later = sorted({int(k.split("/")[2]) for k in metrics if k.startswith("final/downstream_mse/")})
    for k in later:
        table.add_row(f"explained variance entering block {k}", *_cells(metrics, f"final/downstream_ev/{k}"), "share")
    for name in sorted(k for k in metrics if "alive" in k and not k.endswith("_frac")):
        where, n = name.removeprefix("final/alive_").rsplit("_", 1)
        label = f"alive, {'held-out' if where == 'heldout' else 'last training'} {int(n):,} tokens"
        table.add_row(label, f"{metrics[name]:,.0f}", "", "", f"latents ({metrics[f'{name}_frac']:.0%})")
    if rate := metrics.get("final/tokens_per_second"):
        table.add_row("training speed", f"{rate:,.0f}", "", "", "tokens/s")
    if positions := int(metrics["final/downstream_positions"]):
        table.add_row("downstream positions in the loss", str(positions), "", "", "")
    console = Console(width=None if Console().is_terminal else 110, highlight=False)
    console.print(table)
    console.print(f"run folder  {folder.path}", soft_wrap=True)
    if (folder.path / "latents.html").exists():
        console.print(f"latents     {folder.path / 'latents.html'}", soft_wrap=True)
    if config.tracking.mlflow:
        from crux.tracking.mlflow import database

        uri = tracking_uri(config) or database(Path(config.output_dir))
        opens = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        console.print(f"compare     {opens}", soft_wrap=True)


def _cells(metrics: Mapping[str, float], name: str) -> list[str]:
    return [f"{metrics[name + s]:.4g}" if name + s in metrics else "–" for s in ("", "/pos0", "/rest")]
