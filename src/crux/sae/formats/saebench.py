"""Writing and reading the JSON of SAEBench's core evaluation, so that results of crux and of SAEBench can be plotted together.

The format is that of SAEBench 0.6.0: an object with the evaluation's configuration, its metrics by category, and the numbers of each
latent. SAEBench writes −1 for a number that is NaN, and so does crux.
"""

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.config.json_files import read_json_object, shorten_value

EVAL_TYPE = "core"

CORE_METRICS: Mapping[str, tuple[str, ...]] = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        "ce_loss_score",
        "ce_loss_with_ablation",
        "ce_loss_with_sae",
        "ce_loss_without_sae",
    ),
    "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
    "token_stats": ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"),
    "misc_metrics": (
        "freq_over_1_percent",
        "freq_over_10_percent",
        "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent",
        "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim",
        "frac_alive",
    ),
}
"""The metrics of each category; SAEBench requires all of them."""

LATENT_METRICS = (
    "feature_density",
    "consistent_activation_heuristic",
    "encoder_bias",
    "encoder_norm",
    "encoder_decoder_cosine_sim",
    "max_decoder_cosine_sim",
    "max_encoder_cosine_sim",
)
"""The numbers of each latent, next to its `index`."""

COMPUTED = (
    "compute_kl",
    "compute_ce_loss",
    "compute_l2_norms",
    "compute_sparsity_metrics",
    "compute_variance_metrics",
    "compute_featurewise_density_statistics",
    "compute_featurewise_weight_based_metrics",
)
"""Switches of SAEBench's configuration, all on: crux computes everything."""

UNKNOWN = "Unknown"
"""Stands for a version that there is none of; SAEBench's own word, since its schema wants a string."""

NOTE = (
    "written by crux, not by SAEBench: the definitions are those of SAEBench 0.6.0, the text and the windows are the subject's own; "
    "explained_variance is nearly uncentred and mse is divided by the number of tokens twice, as in SAEBench"
)

DECIMALS = 10
"""Decimals of the numbers per latent, as in SAEBench."""


class SaebenchFile(NamedTuple):
    """The content of a file of SAEBench's core evaluation."""

    metrics: dict[str, dict[str, float]]
    """Metrics by category and name; older releases lack some. −1 may stand for NaN."""
    latents: dict[str, list[float]]
    """Numbers of each latent by name, in the order of the latents; empty if the file has none."""
    config: dict[str, Any]
    """SAEBench's configuration of the evaluation."""
    release: str | None
    """Name of the set to which the SAE belongs."""
    sae_id: str | None
    """Name of the SAE within it."""
    sae_config: dict[str, Any]
    """The SAE's configuration (cfg.json); empty if the file has none."""
    notes: dict[str, Any]
    """What the evaluation added outside the schema (`eval_result_unstructured`)."""


def write_saebench_core(
    path: Path,
    *,
    metrics: Mapping[str, Mapping[str, float]],
    latents: Mapping[str, Sequence[float]],
    model: str,
    dataset: str,
    context: int,
    batch: int,
    n_batches: int,
    release: str | None,
    sae_id: str | None,
    sae_config: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> None:
    """Write the file of a core evaluation.

    Args:
        metrics: by category and name, those of `CORE_METRICS`; latents: by name, those of `LATENT_METRICS`, one number per latent.
        model, dataset: names of the network and of the text.
        context: tokens per window; batch: windows per batch; n_batches: number of batches, all of which serve for every metric.
        release, sae_id: name of the set and of the SAE, by which SAEBench's plots label it.
        sae_config: the SAE's configuration.
        notes: numbers and remarks outside the schema, such as crux's centred explained variance.
    """
    for category, names in CORE_METRICS.items():
        assert set(metrics[category]) == set(names), f"{category} has {sorted(metrics[category])}"
    assert set(latents) == set(LATENT_METRICS), f"the numbers of latents are {sorted(latents)}"
    config = {
        "model_name": model,
        "llm_dtype": "float32",
        "batch_size_prompts": batch,
        "n_eval_reconstruction_batches": n_batches,
        "n_eval_sparsity_variance_batches": n_batches,
        "dataset": dataset,
        "context_size": context,
        **dict.fromkeys(COMPUTED, True),
        "exclude_special_tokens_from_reconstruction": False,
        "verbose": False,
    }
    columns = [[round(_number(v), DECIMALS) for v in latents[name]] for name in LATENT_METRICS]
    details = [
        {"index": index, **dict(zip(LATENT_METRICS, row, strict=True))}
        for index, row in enumerate(zip(*columns, strict=True))
    ]
    content = {
        "eval_type_id": EVAL_TYPE,
        "eval_config": config,
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": {
            category: {name: _number(metrics[category][name]) for name in names}
            for category, names in CORE_METRICS.items()
        },
        "eval_result_details": details,
        "sae_bench_commit_hash": UNKNOWN,
        "sae_lens_id": sae_id,
        "sae_lens_release_id": release,
        "sae_lens_version": _sae_lens_version(),
        "sae_cfg_dict": dict(sae_config),
        "eval_result_unstructured": {"note": NOTE, **notes},
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_saebench_core(path: Path) -> SaebenchFile:
    """Read the file of a core evaluation, written by SAEBench or by crux.

    Raises:
        UserError: if the file cannot be read, or is not one of SAEBench's core evaluation.
    """
    content = read_json_object(path)
    kind = content.get("eval_type_id")
    if kind != EVAL_TYPE:
        raise UserError(f"{path}: not a file of SAEBench's core evaluation; its eval_type_id is {shorten_value(kind)}")
    categories = _get_object(content, "eval_result_metrics", path=path)
    metrics = {name: _read_numbers(_get_object(categories, name, path=path), path=path) for name in categories}
    details = content.get("eval_result_details") or []
    if not isinstance(details, list) or not all(isinstance(row, dict) for row in details):
        raise UserError(f"{path}: eval_result_details is not a list of objects")
    rows = [_read_numbers(row, path=path) for row in details]
    rows.sort(key=lambda row: row.get("index", -1.0))
    names = [name for name in (rows[0] if rows else ()) if name != "index"]
    if any(set(row) != {*names, "index"} for row in rows):
        raise UserError(f"{path}: the latents of eval_result_details do not all have the same numbers")
    return SaebenchFile(
        metrics=metrics,
        latents={name: [row[name] for row in rows] for name in names},
        config=_get_object(content, "eval_config", path=path),
        release=content.get("sae_lens_release_id"),
        sae_id=content.get("sae_lens_id"),
        sae_config=_get_object(content, "sae_cfg_dict", path=path),
        notes=_get_object(content, "eval_result_unstructured", path=path),
    )


def _get_object(content: Mapping[str, Any], key: str, *, path: Path) -> dict[str, Any]:
    """Return the object under a key; an empty one if it is absent or null."""
    value = content.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {key} is not an object, but {shorten_value(value)}")
    return value or {}


def _read_numbers(values: Mapping[str, Any], *, path: Path) -> dict[str, float]:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: {name} is not a number, but {shorten_value(value)}")
    return {name: float(value) for name, value in values.items()}


def _number(value: float) -> float | int:
    """Return a number as SAEBench writes it: whole numbers stay whole, and NaN becomes −1; so does an infinite number, which JSON lacks."""
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else -1


def _sae_lens_version() -> str:
    try:
        return version("sae-lens")
    except PackageNotFoundError:
        return UNKNOWN
