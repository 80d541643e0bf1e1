"""The part of a reading about what the network does with the latents: influence, effects on the predictions, and steering."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.reading.ablations import ablate_latents, check_influence, choose_for_ablation
from crux.sae.reading.context_pairs import find_firing_contexts
from crux.sae.reading.control_scores import N_NEAREST
from crux.sae.reading.controls import choose_latents, get_activations, make_direction_control
from crux.sae.reading.directions import DirectionKind, draw_directions
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.influence import Influence, measure_influence, select_windows
from crux.sae.reading.interventions import run_pool
from crux.sae.reading.lens import last_hook
from crux.sae.reading.output_effects import OutputEffects, TokenEffects, measure_output_effects
from crux.sae.reading.percentiles import percentiles_at_density
from crux.sae.reading.section import Reading, Section, no_features
from crux.sae.reading.sparse_codes import SparseCodes, join_codes
from crux.sae.reading.steering import run_steering_contexts, steer_directions, summarise_steering
from crux.sae.reading.steering_comparison import collect_latent_directions
from crux.sae.reading.steering_strength import measure_fisher

CONTEXTS = 32
"""Contexts in which the effects of a latent are measured, and as many held-out ones for their score."""

POOL_WINDOWS, LENGTH = 256, 64
"""Windows of each side from which contexts are taken, and how many tokens of each are run again: later tokens change nothing."""

FISHER_DRAWS = 4
"""Draws of labels of the Fisher matrix with which the search for the strength of effects starts."""

N_TOP = 10
"""Promoted and suppressed tokens that are kept."""

INFLUENCE_KINDS: tuple[DirectionKind, ...] = ("whitened", "isotropic", "example")
"""The control directions of the influence table."""

STEERING_KINDS: tuple[DirectionKind, ...] = ("isotropic", "covariance", "example_difference", "pca")
"""The control directions of the steering table."""

STEERING_WINDOWS, STEERING_POSITION = 48, 24
"""Contexts on which α is chosen, and as many others on which the effects are measured; the position at which the activation is changed."""

SHOWN = (
    "relative_alpha", "kl", "consistency", "mode_share", "lens_overlap", "on_target", "side_effect", "asymmetry", "ce_increase",
)  # fmt: skip
"""The columns of steering in the report; all are explained in `steering.COLUMNS`."""

TOLERANCE = 0.05
"""Share of the budget by which the KL on the fit contexts may miss it; directions that miss it by more are counted and left out."""

N_LARGEST = 8
"""Number of latents with the largest influence that are ablated too: there the second order is least exact."""

MIN_ABLATED = 10
"""Least number of firings of a latent that is ablated to check the influence."""


def describe_influence(
    reading: Reading, *, n_windows: int, n_draws: int, n_ablations: int, n_controls: int
) -> tuple[Section, Influence]:
    """Return the influence of all latents, its check by exact ablations, and its percentile among whitened random directions."""
    held_out, sae = reading.harvest.held_out, reading.site.sae
    windows, codes = select_windows(held_out.windows, held_out.codes, n_windows=n_windows)
    directions = sae.dictionary().detach()

    stand_ins, controls = _make_influence_controls(reading, n_controls, n_windows=n_windows)
    everything = measure_influence(
        reading.subject, windows, join_codes([codes, *(c.codes for c in controls.values())]), hook=reading.site.write,
        directions=torch.cat([directions, *(c.directions.to(directions) for c in controls.values())]), n_draws=n_draws,
        batch=reading.batch, seed=reading.seed,
    )  # fmt: skip
    influence = everything.select(slice(0, reading.n_latents))
    features = pd.DataFrame(
        {
            "influence": influence.kl, "influence_pos0": influence.kl_pos0, "strength": influence.strength,
            "use_per_energy": influence.use_per_energy, "ce_first_order": influence.ce_first_order,
            "energy": influence.energy,
        },
        index=pd.RangeIndex(reading.n_latents, name="latent"),
    )  # fmt: skip
    metrics = {
        "influence_total": float(influence.kl.sum()), "influence_halves_spearman": influence.halves_spearman,
        "dead_weight_share": influence.dead_weight_share(),
    }  # fmt: skip
    tables: dict[str, pd.DataFrame] = {}
    spread = choose_for_ablation(codes.firings(), n=n_ablations, min_firings=MIN_ABLATED)
    if len(spread) > 2:
        largest = np.argsort(-influence.kl, kind="stable")[:N_LARGEST]
        chosen = np.array([*spread, *np.setdiff1d(largest, spread)])
        exact = ablate_latents(
            reading.subject, windows, codes, hook=reading.site.write, directions=directions, latents=chosen,
            batch=reading.batch,
        )  # fmt: skip
        features.loc[chosen, "influence_exact"] = exact.kl
        check = check_influence(influence.kl[spread], exact.kl[: len(spread)])
        tables["ablations"] = pd.DataFrame({
            "latent": chosen, "influence": influence.kl[chosen], "exact KL": exact.kl, "own share": exact.own_share,
            "CE increase": exact.ce_increase, "estimated CE increase": influence.ce_increase[chosen],
        })  # fmt: skip
        metrics |= {
            "influence_log_pearson": check.log_pearson, "influence_median_ratio": check.median_ratio,
            "influence_bias": check.bias,
        }  # fmt: skip
    if controls:
        rows = [_influence_row(f"SAE, {len(stand_ins)} latents", influence.select(stand_ins))]
        for i, kind in enumerate(controls):
            first = reading.n_latents + i * len(stand_ins)
            theirs = everything.select(slice(first, first + len(stand_ins)))
            rows.append(_influence_row(kind, theirs))
            if kind == "whitened":
                for name, values, others in (
                    ("influence", influence.kl, theirs.kl),
                    ("use_per_energy", influence.use_per_energy, theirs.use_per_energy),
                ):
                    features[f"{name}_percentile"] = percentiles_at_density(
                        values, others, densities=influence.densities, control_densities=theirs.densities,
                        n_nearest=N_NEAREST,
                    )  # fmt: skip
        tables["influence"] = pd.DataFrame(rows)
    return Section(features, tables, {k: v for k, v in metrics.items() if np.isfinite(v)}), influence


def _influence_row(name: str, influence: Influence) -> dict[str, object]:
    return {
        "dictionary": name, "latents": len(influence.kl), "density": float(influence.densities.mean()),
        "influence, mean": float(influence.kl.mean()), "influence, median": float(np.median(influence.kl)),
        "strength, median": float(np.nanmedian(influence.strength)),
        "use per energy, median": float(np.nanmedian(influence.use_per_energy)),
    }  # fmt: skip


class _InfluenceControl(NamedTuple):
    """Control directions on the windows on which the influence is measured; their codes add c u to the activation."""

    codes: SparseCodes
    directions: Float[Tensor, "n d"]


def _make_influence_controls(
    reading: Reading, n_controls: int, *, n_windows: int
) -> tuple[Int[np.ndarray, "n"], dict[str, _InfluenceControl]]:
    """Return the latents for which control directions stand, and the controls by kind; a transcoder has none."""
    latents = choose_latents(reading.harvest, n_controls, min_fit=MIN_ABLATED, min_held_out=MIN_ABLATED)
    if n_controls == 0 or len(latents) == 0 or reading.site.read != reading.site.write:
        return latents, {}
    moments, x, controls = reading.moments, get_activations(reading.harvest.fit), {}
    for kind in INFLUENCE_KINDS:
        control = make_direction_control(kind, reading.harvest, latents, moments=moments, seed=reading.seed)
        directions = draw_directions(kind, len(latents), moments=moments, x=x, seed=reading.seed)
        _, codes = select_windows(reading.harvest.held_out.windows, control.held_out, n_windows=n_windows)
        controls[kind] = _InfluenceControl(codes, torch.from_numpy(directions).float())
    return latents, controls


def describe_effects(reading: Reading, influence: Influence, *, n_latents: int, budget: float) -> Section:
    """Return the tokens whose log-probability the most influential latents change, measured, with the logit lens next to them."""
    fit, held_out = reading.harvest.fit, reading.harvest.held_out
    latents = np.sort(np.argsort(-influence.kl, kind="stable")[:n_latents])
    hook = reading.site.write
    fit_windows, fit_codes = _some_windows(fit)
    other_windows, other_codes = _some_windows(held_out)
    pool = run_pool(
        reading.subject, torch.from_numpy(fit_windows[:, :LENGTH]), hook=hook, batch=reading.batch,
        capture=[last_hook(reading.subject)],
    )  # fmt: skip
    other = run_pool(reading.subject, torch.from_numpy(other_windows[:, :LENGTH]), hook=hook, batch=reading.batch)
    context = fit_windows.shape[1]
    length = min(context, LENGTH)
    fit_pairs, _ = find_firing_contexts(fit_codes, context=context, length=length, latents=latents, n_contexts=CONTEXTS)
    held_out_pairs, codes = find_firing_contexts(
        other_codes, context=context, length=length, latents=latents, n_contexts=CONTEXTS
    )
    middle = torch.full((len(fit_windows),), length // 2, device=reading.subject.device)
    fisher = measure_fisher(
        pool, positions=middle, onward=False, n_draws=FISHER_DRAWS, batch=reading.batch, seed=reading.seed
    )
    directions = reading.site.sae.dictionary().detach()[torch.from_numpy(latents).to(reading.subject.device)]
    effects = measure_output_effects(
        pool, other, directions=directions, latents=latents, fit_pairs=fit_pairs, held_out_pairs=held_out_pairs,
        held_out_codes=codes, fisher=fisher, budget=budget, max_steps=2, n_top=N_TOP,
    )  # fmt: skip
    features = _effects_features(effects, reading.names)
    scored = ~np.isnan(effects.held_out_score)
    metrics = {
        "effects_held_out_score": float(effects.held_out_score[scored].mean()),
        "effects_held_out_null": float(np.nanmean(effects.held_out_null[scored])),
        "lens_overlap": float(np.nanmean(effects.lens_overlap)),
    } if scored.any() else {}  # fmt: skip
    table = features[["effects_score", "effects_null", "lens_overlap", "norm_lens_overlap", "alpha"]].describe().loc[
        ["count", "mean", "std", "min", "50%", "max"]
    ]  # fmt: skip
    return Section(features, {"effects": table.reset_index(names="over latents")}, metrics)


def _some_windows(text: ReadText) -> tuple[Int[np.ndarray, "windows context"], SparseCodes]:
    return select_windows(text.windows, text.codes, n_windows=POOL_WINDOWS)


def _effects_features(effects: OutputEffects, names: Sequence[str]) -> pd.DataFrame:
    def words(tokens: TokenEffects) -> list[list[str]]:
        return [
            [f"{names[t]} {m:+.2f}±{e:.2f}" for t, m, e in zip(*row, strict=True) if t >= 0]
            for row in zip(tokens.tokens, tokens.mean, tokens.standard_error, strict=True)
        ]

    return pd.DataFrame(
        {
            "promoted": words(effects.promoted), "suppressed": words(effects.suppressed),
            "lens_promoted": [[names[t] for t in row] for row in effects.lens_promoted],
            **{
                f"{side}_{part}": list(values)
                for side, found in (("promoted", effects.promoted), ("suppressed", effects.suppressed))
                for part, values in (("tokens", found.tokens), ("effects", found.mean), ("errors", found.standard_error))
            },
            "alpha": effects.alpha, "effects_kl": effects.kl, "effects_score": effects.held_out_score,
            "effects_error": effects.held_out_error, "effects_null": effects.held_out_null,
            "lens_overlap": effects.lens_overlap, "norm_lens_overlap": effects.norm_lens_overlap,
        },
        index=pd.Index(effects.latents, name="latent"),
    )  # fmt: skip


def describe_steering(reading: Reading, *, n_latents: int, budget: float) -> Section:
    """Return what latents and control directions do at an equal KL budget, on contexts other than those on which α is chosen."""
    latents, table = steer_latents(reading, n_latents=n_latents, budget=budget)
    if table is None:
        return Section(no_features(), {}, {})
    mine = table["kind"] == "latent"
    columns = ("relative_alpha", "consistency", "mode_share", "on_target", "side_effect")
    features = pd.DataFrame(
        {f"steering_{name}": table.loc[mine, name].to_numpy() for name in columns},
        index=pd.Index(latents, name="latent"),
    )
    return Section(features, {"steering": steering_cells(table, budget=budget)}, {})


def steer_latents(
    reading: Reading, *, n_latents: int, budget: float
) -> tuple[Int[np.ndarray, "n"], pd.DataFrame | None]:
    """Return latents, spread over the densities, and the table of `steer_directions` for them and for control directions.

    The contexts depend on the text alone, so that SAEs can be compared. The table is None if no latent fires often enough.
    """
    latents = choose_latents(reading.harvest, n_latents, min_fit=MIN_ABLATED, min_held_out=MIN_ABLATED)
    if len(latents) == 0:
        return latents, None
    position = min(STEERING_POSITION, reading.harvest.fit.windows.shape[1] - 2)
    fit, test = (
        torch.from_numpy(_spread(side.windows, STEERING_WINDOWS)[:, :LENGTH])
        for side in (reading.harvest.fit, reading.harvest.held_out)
    )
    contexts = run_steering_contexts(
        reading.subject, hook=reading.site.write, fit=fit, test=test, position=position, onward=False, n_draws=8,
        batch=reading.batch, seed=reading.seed,
    )  # fmt: skip
    directions: dict[str, Float[Tensor, "n d"]] = dict(collect_latent_directions(reading.site, latents))
    if reading.site.read == reading.site.write:
        x = get_activations(reading.harvest.fit)
        for kind in STEERING_KINDS:
            drawn = draw_directions(kind, len(latents), moments=reading.moments, x=x, seed=reading.seed)
            directions[kind] = torch.from_numpy(drawn).float()
    return latents, steer_directions(contexts, directions, budget=budget)


def steering_cells(table: pd.DataFrame, *, budget: float) -> pd.DataFrame:
    """Return mean ± standard error over the directions of each kind, without those whose KL misses the budget."""
    met = (table["kl_fit"] / budget - 1).abs() <= TOLERANCE
    rows = []
    for kind in dict.fromkeys(table["kind"]):
        of_kind = summarise_steering(table.loc[met & (table["kind"] == kind)])
        n = int(((table["kind"] == kind) & met).sum())
        row: dict[str, object] = {"directions": kind, "n": n, "missed": int((table["kind"] == kind).sum()) - n}
        if n:
            means, errors = (of_kind.xs(part, axis=1, level=1).iloc[0] for part in ("mean", "standard_error"))
            row |= {name: f"{means[name]:.3g} ± {errors[name]:.1g}" for name in SHOWN}
        rows.append(row)
    return pd.DataFrame(rows)


def _spread(windows: Int[np.ndarray, "windows context"], n: int) -> Int[np.ndarray, "some context"]:
    """Return up to n windows, evenly spread over a text."""
    n = min(n, len(windows))
    return windows[np.arange(n) * len(windows) // n]
