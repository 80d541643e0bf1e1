"""The part of a reading that probes: how well one to five latents tell properties of the text, next to what needs no SAE."""

from collections.abc import Callable, Mapping
from math import isfinite, nan

import numpy as np
import pandas as pd
from jaxtyping import Int

from crux.config.errors import UserError
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.probing import probe_latents
from crux.sae.reading.probing_labels import label_tokens
from crux.sae.reading.section import Reading, Section, no_features
from crux.sae.reading.sparse_codes import SparseCodes

N_SPLITS = 5
"""Number of splits into documents, which are independent repetitions."""

SPARE = 4
"""So many times the tokens that the splits use are labelled, so that each split has many documents."""

SHOWN = {
    ("latents", 1): "1 latent", ("latents", 5): "5 latents", ("random_topk", 1): "1 random direction",
    ("random_topk", 5): "5 random directions", ("coordinates", 1): "1 coordinate", ("pca", 1): "1 component",
    ("token", 0): "token", ("dense", 0): "whole activation",
}  # fmt: skip
"""Features and their number → columns of the report's table."""

GiveLabels = Callable[[ReadText, str], Mapping[str, Int[np.ndarray, "tokens"]]]
"""Returns labels of all tokens of a text that was read, by property; the second argument is its side, `fit` or `held_out`."""


def describe_probing(reading: Reading, *, n_tokens: int, given: GiveLabels | None) -> Section:
    """Return the AUROC of probes for each property of the text that follows from the text alone.

    Metrics are means over properties, `probing/<features>@<k>`, and, for one latent, one per property; `probing/latents_minus_random@1`
    is the mean of the paired differences, with its standard error over properties.

    Args:
        n_tokens: number of training tokens, and of test tokens, in each of five splits.
        given: returns further labels; None: there are none.

    Raises:
        UserError: if the subject has no tokenizer.
    """
    if reading.texts is None:
        raise UserError("reading.probing: the subject has no tokenizer, without which its text has no labels")
    harvest, sides, labels = reading.harvest, {}, {}
    for side, read in (("fit", harvest.fit), ("held_out", harvest.held_out)):
        rows = spread_rows(read, max_tokens=SPARE * N_SPLITS * n_tokens)
        sides[side] = take_rows(read, rows)
        further = {} if given is None else {name: values[rows] for name, values in given(read, side).items()}
        labels[side] = label_tokens(sides[side], reading.texts, end_of_text=harvest.end_of_text, given=further)
    table = probe_latents(
        harvest._replace(fit=sides["fit"], held_out=sides["held_out"]), fit=labels["fit"], held_out=labels["held_out"],
        n_train=n_tokens, n_test=n_tokens, seed=reading.seed, n_splits=N_SPLITS,
    )  # fmt: skip
    return Section(no_features(), {"probing": probing_cells(table)}, probing_metrics(table))


def spread_rows(read: ReadText, *, max_tokens: int) -> Int[np.ndarray, "rows"]:
    """Return the tokens of whole windows that are evenly spread over a text."""
    n_windows, context = read.windows.shape
    n = min(n_windows, max(2, max_tokens // context))
    chosen = np.arange(n) * n_windows // n
    return (chosen[:, None] * context + np.arange(context)).ravel()


def take_rows(read: ReadText, rows: Int[np.ndarray, "rows"]) -> ReadText:
    """Return some windows of a text, of which `rows` are all tokens."""
    matrix = read.codes.matrix()[rows]
    codes = SparseCodes(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, read.codes.n_latents
    )
    windows = read.tokens[rows].reshape(-1, read.windows.shape[1])
    return ReadText(windows, read.begins[rows], codes, None if read.x is None else read.x[rows])


def probing_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per property with the AUROC of each kind of probe, ± half of its 95 % interval over splits.

    A property with few tokens has fewer splits than five, and wide intervals.
    """
    rows: dict[object, dict[str, object]] = {}
    for found in table.sort_values("task", kind="stable").to_dict("records"):
        row = rows.setdefault(
            found["task"],
            {
                "property": found["task"],
                "share": found.get("share"),
                "splits": found.get("n_splits"),
                **dict.fromkeys(SHOWN.values()),
            },
        )
        heading, auroc = SHOWN.get((found["features"], found["k"])), found.get("auroc", nan)
        if heading is not None and isfinite(auroc):
            half = found["auroc_high"] - auroc
            row[heading] = f"{auroc:.2f} ± {half:.2f}" if isfinite(half) else f"{auroc:.2f}"
    return pd.DataFrame(list(rows.values()))


def probing_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return the means over properties, and the AUROC of one latent for each."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in table.to_dict("records"):
        if isfinite(auroc := row.get("auroc", nan)):
            found.setdefault((row["features"], int(row["k"])), {})[row["task"]] = auroc
    metrics = {
        f"probing/{name}" if k == 0 else f"probing/{name}@{k}": float(np.mean(list(aurocs.values())))
        for (name, k), aurocs in found.items()
    }
    latents, random = (found.get((name, 1), {}) for name in ("latents", "random_topk"))
    metrics |= {f"probing/latents@1/{task}": auroc for task, auroc in latents.items()}
    differences = np.array([auroc - random[task] for task, auroc in latents.items() if task in random])
    if len(differences):
        metrics["probing/latents_minus_random@1"] = float(differences.mean())
    if len(differences) > 1:
        metrics["probing/latents_minus_random@1_se"] = float(differences.std(ddof=1) / len(differences) ** 0.5)
    return metrics
