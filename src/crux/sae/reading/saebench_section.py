"""The part of a reading that measures SAEBench's core metrics, and its file in SAEBench's format."""

from collections.abc import Mapping
from math import ceil, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crux.sae.formats.saebench import CORE_METRICS, LATENT_METRICS, write_saebench_core
from crux.sae.reading.saebench_core import measure_saebench_core
from crux.sae.reading.section import Reading, Section

BATCH = 16
"""Windows per batch, as in SAEBench; some of its numbers depend on it."""

OWN = ("explained_variance_centred", "mse_per_dimension")
"""Numbers by crux's own definitions, which stand next to SAEBench's."""


def describe_saebench(reading: Reading, *, max_tokens: int, force: bool) -> Section:
    """Return SAEBench's core metrics on held-out text: metrics `saebench/<category>/<name>`, and columns `saebench_<name>`.

    End-of-text tokens are not counted, as in SAEBench. A metric without a value is left out.
    """
    core = measure_saebench_core(
        reading.subject, reading.site, batches=reading.harvest.held_out.batches(BATCH, max_tokens=max_tokens),
        ignored=() if reading.harvest.end_of_text is None else (reading.harvest.end_of_text,), force=force,
    )  # fmt: skip
    features = pd.DataFrame(
        {f"saebench_{name}": values.numpy() for name, values in core.latents.items()},
        index=pd.RangeIndex(reading.n_latents, name="latent"),
    )
    rows = [(category, name, value) for category, values in core.metrics.items() for name, value in values.items()]
    rows += [("crux's own definition", name, getattr(core, name)) for name in OWN]
    metrics = {
        f"saebench/{name}" if name in OWN else f"saebench/{category}/{name}": value
        for category, name, value in rows
        if np.isfinite(value)
    }
    table = pd.DataFrame(rows, columns=["category", "metric", "value"]).astype({"value": float})
    return Section(features, {"saebench": table}, metrics)


def write_saebench_file(
    path: Path, section: Section, *, model: str, dataset: str, context: int, sae_id: str, sae_config: Mapping[str, Any]
) -> None:
    """Write the metrics of `describe_saebench` in SAEBench's format.

    Args:
        model, dataset: names of the network and of the text; context: tokens per window.
        sae_id: name of the SAE, by which SAEBench's plots label it; sae_config: the SAE's configuration.
    """
    metrics = {
        category: {name: section.metrics.get(f"saebench/{category}/{name}", nan) for name in names}
        for category, names in CORE_METRICS.items()
    }
    latents = {
        name: section.features[f"saebench_{name}"].to_numpy(np.float64, na_value=nan).tolist()
        for name in LATENT_METRICS
    }
    n_tokens = metrics["token_stats"]["total_tokens_eval_reconstruction"]
    write_saebench_core(
        path, metrics=metrics, latents=latents,
        model=model, dataset=dataset, context=context, batch=BATCH, n_batches=ceil(n_tokens / context / BATCH),
        release="crux", sae_id=sae_id, sae_config=sae_config,
        notes={name: section.metrics[f"saebench/{name}"] for name in OWN if f"saebench/{name}" in section.metrics},
    )  # fmt: skip
