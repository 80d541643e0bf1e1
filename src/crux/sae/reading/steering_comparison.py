"""The directions of a steering comparison, and the difference of two SAEs with bootstrap intervals over latents, paired with controls."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.site import Site


class SteeringDifference(NamedTuple):
    """The difference of two SAEs' latents in one column of the steering table, at an equal KL budget."""

    column: str
    control: str
    """The kind of direction whose value is subtracted from each latent's; empty: none."""
    n_a: int
    """Number of latents of the first SAE that have a value."""
    n_b: int
    mean_a: float
    """Mean over latents of the first SAE, minus their controls."""
    mean_b: float
    difference: float
    """`mean_a` − `mean_b`."""
    low: float
    """Lower end of the 95 % bootstrap interval of the difference, over latents; it says nothing about other seeds of the SAEs."""
    high: float


def collect_latent_directions(
    site: Site, latents: Int[np.ndarray, "n"], *, other: Site | None = None
) -> dict[str, Float[Tensor, "n d"]]:
    """Return the directions of some latents, and the controls that follow from the SAEs: one row per latent in each kind.

    `latent` are the decoder directions; `encoder` the encoder directions, left out for a transcoder, whose encoder is at another hook
    point; `matched` the decoder direction of `other` with the largest (signed) cosine. `draw_directions` draws the other controls.

    Raises:
        UserError: if the two SAEs write different hook points.
    """
    chosen = torch.from_numpy(np.asarray(latents, np.int64)).to(site.sae.W_dec.device)
    with torch.no_grad():
        rows = site.sae.dictionary()[chosen]
        directions = {"latent": rows}
        if site.read == site.write:
            directions["encoder"] = F.normalize(site.sae.W_enc.T[chosen], dim=-1)
        if other is not None:
            if other.write != site.write:
                raise UserError(f"the SAEs write {site.write} and {other.write}: their latents cannot be matched")
            dictionary = other.sae.dictionary().to(rows)
            directions["matched"] = dictionary[(rows @ dictionary.T).argmax(1)]
    return {kind: value.detach().clone() for kind, value in directions.items()}


def compare_steering(
    a: pd.DataFrame,
    b: pd.DataFrame,
    *,
    columns: Sequence[str],
    controls: Sequence[str],
    n_resamples: int,
    seed: int,
) -> list[SteeringDifference]:
    """Compare the latents of two SAEs in the tables of `steer_directions`, which should have the same contexts.

    For each column, once for the latents themselves and once for each kind of control: the mean over latents of the value (minus the value
    of the control that stands for the latent, the row of the same index), the difference of the two SAEs, and its percentile bootstrap
    interval. Latents of the two SAEs are resampled independently of each other, each together with its control.

    Args:
        controls: kinds of directions that both tables have.

    Raises:
        UserError: if the tables have more than one budget or variant, differ in them, lack a kind, or no latent has a value.
    """
    settings = {(float(row.budget), bool(row.onward)) for table in (a, b) for row in table.itertuples()}  # pyright: ignore[reportAttributeAccessIssue]
    if len(settings) != 1:
        raise UserError(f"two SAEs are compared at one KL budget in one variant; the tables have {sorted(settings)}")
    rng = np.random.default_rng(seed)
    differences = []
    for column in columns:
        for control in ("", *controls):
            x, y = (_subtract_control(table, column, control) for table in (a, b))
            resampled = _resample_means(x, n_resamples, rng) - _resample_means(y, n_resamples, rng)
            low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
            mean_a, mean_b = float(x.mean()), float(y.mean())
            differences.append(
                SteeringDifference(column, control, len(x), len(y), mean_a, mean_b, mean_a - mean_b, low, high)
            )
    return differences


def _subtract_control(table: pd.DataFrame, column: str, control: str) -> Float[np.ndarray, "latents"]:
    """Return a column of the latents, minus that of their controls; latents without a value are left out."""
    by_kind = {str(kind): pd.Series(rows.set_index("index")[column]) for kind, rows in table.groupby("kind")}
    if missing := [kind for kind in ("latent", control) if kind and kind not in by_kind]:
        raise UserError(f"the steering table has no directions of the kind {missing[0]}; it has {', '.join(by_kind)}")
    values = by_kind["latent"] - by_kind[control] if control else by_kind["latent"]
    kept = values.dropna().to_numpy(float)
    if len(kept) == 0:
        raise UserError(f"no latent has a value of {column}{f' with a control {control}' * bool(control)}")
    return kept


def _resample_means(values: Float[np.ndarray, "n"], n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means of resamples with replacement, a block of them at a time."""
    step = max(1, 2**22 // len(values))
    sizes = [min(step, n_resamples - first) for first in range(0, n_resamples, step)]
    return np.concatenate([values[rng.integers(0, len(values), (size, len(values)))].mean(1) for size in sizes])
