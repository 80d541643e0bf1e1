"""The parts of a reading about the whole SAE: rewritten CE, the residual error, and the geometry of its dictionary."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from crux.sae.geometry.compare import compare_dictionaries, describe_dictionary
from crux.sae.geometry.dictionary import read_dictionary
from crux.sae.geometry.meta_sae import measure_meta_structure
from crux.sae.reading.code_similarity import describe_code_similarity
from crux.sae.reading.controls import get_activations
from crux.sae.reading.error_attribution import attribute_to_error
from crux.sae.reading.residual import measure_residual
from crux.sae.reading.rewriting import measure_rewriting
from crux.sae.reading.rules import Rules
from crux.sae.reading.section import OtherSae, Reading, Section, no_features
from crux.sae.reading.splitting import describe_splitting

SHRINKAGE, MIN_COUNT, LINE_DEPTH = 2.0, 3, 2
"""Of the dictionary-free line: κ, the least number of fit tokens at a suffix, and the longest suffix."""

RESIDUAL_DRAWS, INTEGRATION_STEPS = 3, 10
"""Draws of each noise, and steps of the integrated gradients."""


def describe_rewriting(reading: Reading, rules: Mapping[int, Rules], *, max_tokens: int) -> Section:
    """Return how much of the CE the rules recover, next to as many stored values without a dictionary."""
    site, harvest = reading.site, reading.harvest
    writes_elsewhere = site.read != site.write
    rewriting = measure_rewriting(
        reading.subject, site, harvest, {f"rules, K = {k}": some for k, some in rules.items()},
        tree=reading.fit_text.tree, mean=reading.mean_written, x=None if writes_elsewhere else get_activations(harvest.fit),
        shrinkage=SHRINKAGE, min_count=MIN_COUNT, depth=LINE_DEPTH, max_tokens=max_tokens, batch=reading.batch,
    )  # fmt: skip
    metrics = {
        f"rewritten_recovered@{k}": row.recovered
        for row in rewriting.rows
        for k in rules
        if row.replacement == f"rules, K = {k}" and np.isfinite(row.recovered)
    }
    table = pd.DataFrame(rewriting.rows)
    table[["stored", "stored_with_decoder"]] = table[["stored", "stored_with_decoder"]].where(table["stored"] >= 0)
    return Section(no_features(), {"rewriting": table}, metrics)


def describe_residual(reading: Reading, *, max_tokens: int, force: bool) -> Section:
    """Return what the residual error does to the predictions, next to noise of equal norm, and its share by integrated gradients."""
    fit, held_out = reading.harvest.fit, reading.harvest.held_out
    report = measure_residual(
        reading.subject, reading.site, fit=list(fit.batches(reading.batch, max_tokens=4 * max_tokens)),
        held_out=list(held_out.batches(reading.batch, max_tokens=max_tokens)), n_draws=RESIDUAL_DRAWS, seed=reading.seed,
        force=force,
    )  # fmt: skip
    rows = [{key: value for key, value in row._asdict().items() if key != "draws"} for row in report.rows]
    ratios = [{"ratio": name, **ratio._asdict()} for name, ratio in report.ratios.items()]
    metrics = {f"residual/{name}": value for name, value in report.metrics().items() if not name.startswith("kl/")}
    shares = attribute_to_error(
        reading.subject, reading.site, batches=list(held_out.batches(reading.batch, max_tokens=max_tokens // 4)),
        mean_activation=torch.from_numpy(reading.mean_written).float(), n_steps=INTEGRATION_STEPS, seed=reading.seed, force=force,
    )  # fmt: skip
    features = pd.DataFrame({"attributed_gain": shares.latents}, index=pd.RangeIndex(reading.n_latents, name="latent"))
    found = {
        "error_share": shares.error_share.everywhere, "error_share_noise": shares.error_share.noise,
        "signed_error_share": shares.signed_share, "attribution_completeness": shares.completeness,
    }  # fmt: skip
    metrics |= {name: value for name, value in found.items() if value is not None and np.isfinite(value)}
    return Section(features, {"residual": pd.DataFrame(rows), "residual_ratios": pd.DataFrame(ratios)}, metrics)


def describe_geometry(reading: Reading, *, other: OtherSae | None, meta_sae_steps: int = 0) -> Section:
    """Return the similarities within the dictionary and, with another SAE, those of dictionaries and codes, with their chance levels.

    Args:
        meta_sae_steps: training steps of a meta-SAE on the decoder directions of alive latents; 0: none.
    """
    alive = reading.harvest.held_out.codes.firings() > 0
    mine = read_dictionary(reading.site.sae, alive=alive)
    covariance = torch.from_numpy(reading.moments.covariance)
    transcodes = reading.site.read != reading.site.write
    if transcodes:  # the covariance of what it writes is not known: without it, there is one chance level
        covariance = torch.eye(mine.decoder.shape[1], dtype=torch.float64)
    within = describe_dictionary(mine, covariance=covariance, seed=reading.seed)
    features = pd.DataFrame(
        {"nearest_cosine": within.max_cos.cosines, "nearest_latent": mine.latents[within.max_cos.indices]},
        index=pd.Index(mine.latents, name="latent"),
    )
    isotropic, shaped = within.chance.means()
    metrics = {
        "within_max_cos": within.max_cos.mean, "within_max_cos/isotropic": isotropic,
        "within_max_cos/shaped": shaped, "encoder_decoder_cos": within.encoder_decoder,
    }  # fmt: skip
    if other is not None:
        theirs = read_dictionary(other.site.sae, alive=other.harvest.held_out.codes.firings() > 0)
        pair = compare_dictionaries(mine, theirs, covariance=covariance, seed=reading.seed)
        features["other_cosine"] = pair.to.cosines
        features["other_latent"] = theirs.latents[pair.to.indices]
        features["novel"] = pair.novel_to
        partner = np.full(len(mine.latents), -1)
        partner[pair.matching.rows] = theirs.latents[pair.matching.columns]
        cosine = np.full(len(mine.latents), np.nan)
        cosine[pair.matching.rows] = pair.matching.cosines
        features["matched_latent"], features["matched_cosine"] = partner, cosine
        features["matched_at_chance"] = cosine < pair.novel_below
        matched = mine.latents[pair.matching.rows], theirs.latents[pair.matching.columns]
        metrics |= pair.numbers()
        metrics |= describe_code_similarity(reading.harvest.held_out, other.harvest.held_out, matched=matched)
        columns, shares = describe_splitting(
            reading.harvest.held_out.codes, other.harvest.held_out.codes,
            dictionary=reading.site.sae.dictionary(), other_dictionary=other.site.sae.dictionary(),
        )  # fmt: skip
        features = features.join(columns)
        metrics |= shares
    if meta_sae_steps:
        meta = measure_meta_structure(mine.decoder, covariance=covariance, seed=reading.seed, steps=meta_sae_steps)
        metrics |= {
            "meta_sae_explained": meta.explained, "meta_sae_explained/isotropic": meta.isotropic,
            "meta_sae_explained/shaped": meta.shaped,
        }  # fmt: skip
    if transcodes:
        metrics = {name: value for name, value in metrics.items() if not name.endswith("/shaped")}
    table = pd.DataFrame([{"measure": name, "value": value} for name, value in metrics.items()])
    return Section(features, {"geometry": table}, {k: v for k, v in metrics.items() if np.isfinite(v)})
