"""What a finished run shows: figures, the page of its latents, the table on the screen."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from crux.config.console import make_console
from crux.config.files import write_text
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.site import Site
from crux.sae.evaluation.evaluate_sae import SaeEvaluation
from crux.sae.evaluation.evaluate_sites import WITH_GRADIENT, SitesEvaluation
from crux.sae.evaluation.latents import choose_latents, logit_effects, strongest_contexts
from crux.sae.figures.densities import plot_densities
from crux.sae.figures.downstream import plot_downstream
from crux.sae.figures.latents_page import render_latents_page
from crux.sae.figures.loss_curves import plot_loss_curves
from crux.sae.formats import saelens
from crux.sae.options import SaeJob, model_source, text_name
from crux.subjects.hooks import parse_hook
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer


def file_stem(name: str) -> str:
    """Return a run's name for the file system, such as `e2e_ds_L6_s1.5`."""
    return re.sub(r"[^\w.+-]+", "_", name.replace("λ=", "s"))


def sae_metadata(config: SaeJob, site: Site, *, sparsity: float) -> dict[str, Any]:
    """What must be known of the SAE before it may be judged again."""
    return {
        "model_name": str(model_source(config.model)),
        "hook_name": site.read,
        **({"hook_name_out": site.write} if site.write != site.read else {}),
        "process_weights": config.model.process_weights,
        "context_size": config.model.context,
        "prepend_bos": False,
        "dataset_path": text_name(config.data),
        "sae": config.sae.name,
        "loss": config.loss.name,
        "sparsity": sparsity,
        "target_l0": config.target_l0,
        "seed": config.seed,
    }


def write_saes(folder: RunFolder, config: SaeJob, sites: Sequence[Site], sparsities: Sequence[float]) -> None:
    """`sae/`, or with several hook points `sae/<hook point>/`; with the λ that each was trained under at the end."""
    for site, sparsity in zip(sites, sparsities, strict=True):
        place = folder.path / "sae" if len(sites) == 1 else folder.path / "sae" / site.write
        saelens.save_sae(site.sae, place, sae_metadata(config, site, sparsity=sparsity))


def write_figures(
    folder: RunFolder, subject: Subject, sites: Sequence[Site], evaluation: SitesEvaluation, *, terms: Mapping[str, str]
) -> None:
    """Loss curves, and for each SAE downstream reconstruction and firing densities, as PNG."""
    write_loss_curves(folder, terms)
    for site, found in zip(sites, evaluation.evaluations, strict=True):
        hook, suffix = parse_hook(site.write), _suffix(site, sites)
        drawn = {
            "downstream": plot_downstream(
                found.metrics, hook=site.write, n_layers=subject.n_layers, at=hook.layer + (hook.kind == "resid_post")
            ),
            "densities": plot_densities(found.densities.numpy(), n_tokens=found.n_tokens),
        }
        for name, figure in drawn.items():
            save_figure(figure, folder.path / "figures" / f"{name}{suffix}.png")


def write_loss_curves(folder: RunFolder, terms: Mapping[str, str]) -> None:
    """Draw the terms of the loss, by key and label, and L0 over the training."""
    save_figure(
        plot_loss_curves(folder.read_history(), terms=terms, l0="train/l0"), folder.path / "figures" / "loss_curves.png"
    )


def _suffix(site: Site, sites: Sequence[Site]) -> str:
    """Tells the files of several SAEs apart."""
    return "" if len(sites) == 1 else f"_{site.write}"


def save_figure(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)


def write_latents_pages(
    folder: RunFolder,
    config: SaeJob,
    *,
    subject: Subject,
    sites: Sequence[Site],
    batches: Sequence[Tensor],
    evaluation: SitesEvaluation,
) -> None:
    """`latents.html`, one an SAE: densities, strongest contexts and logit effects of some latents."""
    for site, found in zip(sites, evaluation.evaluations, strict=True):
        latents = choose_latents(found.densities, found.maxima, n=config.evaluation.latents)
        if len(latents) == 0:
            continue  # none wanted, or nothing fires
        page = _page(
            config.run_name(), model_source(config.model), subject=subject, site=site, batches=batches, found=found,
            latents=latents,
        )  # fmt: skip
        write_text(folder.path / f"latents{_suffix(site, sites)}.html", page)


def _page(
    title: str,
    source: str | Path,
    *,
    subject: Subject,
    site: Site,
    batches: Sequence[Tensor],
    found: SaeEvaluation,
    latents: Int[Tensor, "latents"],
) -> str:
    sae, before = site.sae.fold(), 12
    contexts = strongest_contexts(
        subject,
        sae,
        hook=site.read,
        batches=batches,
        latents=latents,
        n_contexts=8,
        before=before,
        after=8,
    )
    directions = subject.map_to_residual(site.write, sae.dictionary()[latents.to(subject.device)])
    effects = logit_effects(directions, subject.unembed, n_top=6)
    tokenizer, _ = load_tokenizer(source)
    return render_latents_page(
        title=title,
        facts={
            "subject": str(source),
            "hook point": site.read if site.read == site.write else f"{site.read} → {site.write}",
            "L0": f"{found.metrics['l0']:.1f}",
            "CE loss increase": f"{found.metrics['ce_increase']:+.3f} nats",
            "latents": f"{len(latents)} of {sae.n_latents}",
            "held-out tokens": f"{found.n_tokens:,}",
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


def print_evaluation(name: str, hooks: Sequence[str], metrics: Mapping[str, float]) -> None:
    """Print the evaluation as one table, and each SAE's own if there are several; `hooks` are those that they read."""
    console = make_console(width=110)
    if len(hooks) == 1:
        console.print(_table(f"{name} on held-out text", metrics))
        return
    console.print(_table(f"{name} on held-out text, all SAEs in place", metrics))
    for hook in hooks:
        own = {k.replace(f"{hook}/", "", 1): v for k, v in metrics.items() if hook in k}
        console.print(_table(f"{hook} alone", own))


def _table(title: str, metrics: Mapping[str, float]) -> Table:
    table = Table(title=title, title_justify="left")
    for column, justify in (
        ("", "left"),
        ("all", "right"),
        ("position 0", "right"),
        ("rest", "right"),
        ("unit", "left"),
    ):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    for name, (label, unit) in ROWS.items():
        if f"final/{name}" in metrics:
            table.add_row(label, *_cells(metrics, f"final/{name}"), unit)
        if f"final/{WITH_GRADIENT}/{name}" in metrics and name in CHANGED_BY_CHOICE:
            table.add_row("  latents chosen by gradient*", *_cells(metrics, f"final/{WITH_GRADIENT}/{name}"), unit)
    later = sorted(int(k.split("/")[2]) for k in metrics if re.fullmatch(r"final/downstream_mse/\d+", k))
    for k in later:
        table.add_row(f"explained variance entering block {k}", *_cells(metrics, f"final/downstream_ev/{k}"), "share")
    for name in sorted(k for k in metrics if re.fullmatch(r"final/alive_(heldout|train)_\d+", k)):
        where, n = name.removeprefix("final/alive_").rsplit("_", 1)
        label = f"alive, {'held-out' if where == 'heldout' else 'last training'} {int(n):,} tokens"
        table.add_row(label, f"{metrics[name]:,.0f}", "", "", f"latents ({metrics[f'{name}_frac']:.0%})")
    if sparsity := metrics.get("final/sparsity"):
        table.add_row("sparsity λ", f"{sparsity:.4g}", "", "", "")
    if rate := metrics.get("final/tokens_per_second"):
        table.add_row("training speed", f"{rate:,.0f}", "", "", "tokens/s")
    if positions := int(metrics.get("final/downstream_positions", 0)):
        table.add_row("downstream positions in the loss", str(positions), "", "", "")
    if f"final/{WITH_GRADIENT}/ce_increase" in metrics:
        table.caption = "* a choice that has seen the label's gradient: not how the SAE can be used"
    return table


CHANGED_BY_CHOICE = ("ce_increase", "kl", "explained_variance")
"""What the table shows again for latents that were chosen by the gradient."""


def _cells(metrics: Mapping[str, float], name: str) -> list[str]:
    return [f"{metrics[name + s]:.4g}" if name + s in metrics else "–" for s in ("", "/pos0", "/rest")]
