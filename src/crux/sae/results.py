"""The results of a finished run: saved SAEs, figures, the page of latents, and the table on the screen."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from crux.config.console import make_console
from crux.config.files import write_text
from crux.config.markdown import markdown_table
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.site import Site
from crux.sae.evaluation.divergence import describe_divergence
from crux.sae.evaluation.evaluate_sae import SaeEvaluation
from crux.sae.evaluation.evaluate_sites import WITH_GRADIENT, SitesEvaluation
from crux.sae.evaluation.latents import choose_latents
from crux.sae.evaluation.running_sums import SUBSETS
from crux.sae.figures.densities import plot_densities
from crux.sae.figures.downstream import plot_downstream
from crux.sae.figures.features_page import render_features_page
from crux.sae.figures.features_page_data import FeaturesPage
from crux.sae.figures.loss_curves import plot_loss_curves
from crux.sae.formats import saelens
from crux.sae.options import SaeJob, model_source, text_name
from crux.sae.reading.quick_read import read_batches
from crux.sae.reading.text_page import describe_text_features
from crux.subjects.hooks import parse_hook
from crux.subjects.subject import Subject
from crux.subjects.token_texts import TokenTexts
from crux.subjects.tokenizer import load_tokenizer


def file_stem(name: str) -> str:
    """Return a file name for a run, such as `e2e_ds_L6_s1.5`."""
    return re.sub(r"[^\w.+-]+", "_", name.replace("λ=", "s"))


def sae_metadata(config: SaeJob, site: Site, *, sparsity: float) -> dict[str, Any]:
    """Return the metadata of a saved SAE, which an evaluation of it needs."""
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
        **({"start_from": config.sae.start_from} if config.sae.start_from is not None else {}),
    }


def write_saes(folder: RunFolder, config: SaeJob, sites: Sequence[Site], sparsities: Sequence[float]) -> None:
    """Save each SAE with its final λ to `sae/`, or to `sae/<hook point>/` if there are several."""
    for site, sparsity in zip(sites, sparsities, strict=True):
        path = folder.path / "sae" if len(sites) == 1 else folder.path / "sae" / site.write
        saelens.save_sae(site.sae, path, sae_metadata(config, site, sparsity=sparsity))


def write_figures(
    folder: RunFolder, subject: Subject, sites: Sequence[Site], evaluation: SitesEvaluation, *, terms: Mapping[str, str]
) -> None:
    """Write loss curves and, for each SAE, downstream reconstruction and firing densities, as PNG files."""
    write_loss_curves(folder, terms)
    for site, sae_evaluation in zip(sites, evaluation.evaluations, strict=True):
        hook, suffix = parse_hook(site.write), _file_suffix(site, sites)
        figures = {
            "downstream": plot_downstream(
                sae_evaluation.metrics,
                hook=site.write,
                n_layers=subject.n_layers,
                at=hook.layer + (hook.kind == "resid_post"),
            ),
            "densities": plot_densities(sae_evaluation.densities.numpy(), n_tokens=sae_evaluation.n_tokens),
        }
        for name, figure in figures.items():
            save_figure(figure, folder.path / "figures" / f"{name}{suffix}.png")


def write_loss_curves(folder: RunFolder, terms: Mapping[str, str]) -> None:
    """Write the curves of the loss terms (key → label) and of L0 over the training."""
    save_figure(
        plot_loss_curves(folder.read_history(), terms=terms, l0="train/l0"), folder.path / "figures" / "loss_curves.png"
    )


def _file_suffix(site: Site, sites: Sequence[Site]) -> str:
    """Return the part of a file name that distinguishes the files of several SAEs."""
    return "" if len(sites) == 1 else f"_{site.write}"


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure with the resolution of all figures of runs."""
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
    """Write one `latents.html` per SAE, with densities, contexts and logit effects of all latents, or of as many as are asked for."""
    if config.evaluation.latents == 0:
        return
    for site, sae_evaluation in zip(sites, evaluation.evaluations, strict=True):
        page = _render_page(config, subject=subject, site=site, batches=batches, evaluation=sae_evaluation)
        write_text(folder.path / f"latents{_file_suffix(site, sites)}.html", page)


def _render_page(
    config: SaeJob, *, subject: Subject, site: Site, batches: Sequence[Tensor], evaluation: SaeEvaluation
) -> str:
    """Return the page of the latents of one SAE."""
    sae, source = site.sae.fold(), model_source(config.model)
    tokenizer, _ = load_tokenizer(source)
    read_tokens = TokenTexts(tokenizer)
    latents = torch.arange(sae.n_latents)
    if sae.n_latents > config.evaluation.latents:
        latents = choose_latents(evaluation.densities, evaluation.maxima, n=config.evaluation.latents)
    text = read_batches(subject, site._replace(sae=sae), batches)
    features = describe_text_features(
        text,
        name=config.loss.name,
        latents=latents.numpy(),
        directions=subject.map_to_residual(site.write, sae.dictionary()[latents.to(subject.device)]),
        unembed=subject.unembed,
        read_tokens=read_tokens,
    )
    facts = {
        "subject": str(source),
        "hook point": site.read if site.read == site.write else f"{site.read} → {site.write}",
        "L0": f"{evaluation.metrics['l0']:.1f}",
        "CE loss increase": f"{evaluation.metrics['ce_increase']:+.3f} nats",
        "latents": f"{len(latents):,} of {sae.n_latents:,}",
        "held-out tokens": f"{text.n_tokens:,}",
    }
    return render_features_page(FeaturesPage(config.run_name(), facts, features), read_tokens=read_tokens)


TABLE_ROWS = {
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
"""Rows of the table on the screen: name of the metric → label and unit."""


TABLE_COLUMNS = ("", "all", "position 0", "rest", "unit")


def print_evaluation(name: str, hooks: Sequence[str], metrics: Mapping[str, float]) -> None:
    """Print the evaluation as a table, and one more table per SAE if there are several.

    `hooks` are the hook points of the SAEs, which are part of the names of their metrics.
    """
    console = make_console(width=110)
    together = "" if len(hooks) == 1 else ", all SAEs in place"
    console.print(_make_table(f"{name} on held-out text{together}", metrics))
    for hook in hooks if len(hooks) > 1 else ():
        console.print(_make_table(f"{hook} alone", _metrics_of_one_sae(metrics, hook)))
    if verdict := _describe_verdict(metrics):
        console.print(verdict, soft_wrap=True)


def _describe_verdict(metrics: Mapping[str, float]) -> str:
    """Return one line about a run that has diverged; empty for every other run."""
    divergence = describe_divergence(metrics)
    return f"DIVERGED, or hardly trained: {divergence}" if divergence else ""


def _make_table(title: str, metrics: Mapping[str, float]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(TABLE_COLUMNS):
        table.add_column(column, justify="right" if 0 < i < len(TABLE_COLUMNS) - 1 else "left")
    for row in _table_rows(metrics):
        table.add_row(*row)
    if f"final/{WITH_GRADIENT}/ce_increase" in metrics:
        table.caption = "* with the gradient of the label, which is not available when the SAE is used"
    return table


def describe_evaluation(hooks: Sequence[str], metrics: Mapping[str, float]) -> str:
    """Return the evaluation as Markdown tables, as `print_evaluation` shows it."""
    parts = [verdict] if (verdict := _describe_verdict(metrics)) else []
    parts.append(markdown_table(TABLE_COLUMNS, _table_rows(metrics)))
    for hook in hooks if len(hooks) > 1 else ():
        parts += [f"{hook} alone", markdown_table(TABLE_COLUMNS, _table_rows(_metrics_of_one_sae(metrics, hook)))]
    return "\n\n".join(parts)


def _metrics_of_one_sae(metrics: Mapping[str, float], hook: str) -> dict[str, float]:
    """Return the metrics of one of several SAEs, which have its hook point in their names: final/<hook point>/l0."""
    return {name.replace(f"{hook}/", "", 1): value for name, value in metrics.items() if hook in name}


def _table_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Return the rows of the table of one SAE, or of all SAEs together."""
    rows: list[list[str]] = []
    for name, (label, unit) in TABLE_ROWS.items():
        if f"final/{name}" in metrics:
            rows.append([label, *_format_cells(metrics, f"final/{name}"), unit])
        if f"final/{WITH_GRADIENT}/{name}" in metrics and name in GRADIENT_METRICS:
            cells = _format_cells(metrics, f"final/{WITH_GRADIENT}/{name}")
            rows.append(["  latents selected by gradient*", *cells, unit])
    blocks = sorted(int(name.split("/")[2]) for name in metrics if re.fullmatch(r"final/downstream_mse/\d+", name))
    for k in blocks:
        # the last residual enters no block: its k is the number of blocks
        place = f"entering block {k}" if k < blocks[-1] else "after the last block"
        rows.append([f"explained variance {place}", *_format_cells(metrics, f"final/downstream_ev/{k}"), "share"])
    for name in sorted(name for name in metrics if re.fullmatch(r"final/alive_(heldout|train)_\d+", name)):
        split, n = name.removeprefix("final/alive_").rsplit("_", 1)
        label = f"alive, {'held-out' if split == 'heldout' else 'last training'} {int(n):,} tokens"
        rows.append([label, f"{metrics[name]:,.0f}", "", "", f"latents ({metrics[f'{name}_frac']:.0%})"])
    if sparsity := metrics.get("final/sparsity"):
        rows.append(["sparsity λ", f"{sparsity:.4g}", "", "", ""])
    if rate := metrics.get("final/tokens_per_second"):
        rows.append(["training speed", f"{rate:,.0f}", "", "", "tokens/s"])
    if n_hooks := int(metrics.get("final/downstream_positions", 0)):
        rows.append(["later hook points in the loss", str(n_hooks), "", "", ""])
    return rows


GRADIENT_METRICS = ("ce_increase", "kl", "explained_variance")
"""Metrics in the table that are also shown for latents selected by the gradient."""


def _format_cells(metrics: Mapping[str, float], name: str) -> list[str]:
    """Return a metric over all positions, at position 0 and at the other positions; a dash if it has no value."""
    return [f"{metrics[name + suffix]:.4g}" if name + suffix in metrics else "–" for suffix in SUBSETS]
