"""The part of a reading about directions: where energy and error lie, what the network reads, and what the SAE keeps of it."""

import numpy as np
import pandas as pd

from crux.sae.geometry.directional import find_directions, measure_directions
from crux.sae.geometry.energy_against_use import EnergyAgainstUse, measure_energy_against_use
from crux.sae.reading.section import Reading, Section, no_features

KS = (1, 4, 16)
"""Numbers of directions of which the shares of energy are given."""

N_COMPONENTS, N_RANDOM = 3, 2
"""Principal components of either kind, and random directions, in the table of single directions."""

FIT_DRAWS = 2
"""Draws of labels of each token for the Fisher information."""


def describe_directions(reading: Reading, *, max_tokens: int, force: bool) -> Section:
    """Return the shares of energy in the directions that the network reads, and the table of single directions.

    Args:
        max_tokens: held-out tokens; twice as many training tokens give the Fisher information and the principal components.
        force: as in `evaluate_sae`.
    """
    subject, site, end_of_text = reading.subject, reading.site, reading.harvest.end_of_text
    fit = list(reading.harvest.fit.batches(reading.batch, max_tokens=2 * max_tokens))
    held_out = list(reading.harvest.held_out.batches(reading.batch, max_tokens=max_tokens))
    energy = measure_energy_against_use(
        subject, site, fit=fit, held_out=held_out, ks=KS, n_draws=FIT_DRAWS, seed=reading.seed, force=force
    )
    directions = find_directions(
        subject, hook=site.write, batches=fit, n_components=N_COMPONENTS, n_random=N_RANDOM, end_of_text=end_of_text,
        seed=reading.seed,
    )  # fmt: skip
    rows = measure_directions(
        subject, site, directions, fisher=energy.fisher, batches=held_out, end_of_text=end_of_text, seed=reading.seed,
        force=force,
    )  # fmt: skip
    metrics = {f"use/{name}": value for name, value in energy.use.items()}
    if energy.error_use_own_token is not None:
        metrics["use/error_own_token"] = energy.error_use_own_token.value
    table = pd.DataFrame([row._asdict() for row in rows])
    return Section(
        no_features(), {"energy": tabulate_energy(energy), "directions": table},
        {name: value for name, value in metrics.items() if np.isfinite(value)},
    )  # fmt: skip


def tabulate_energy(energy: EnergyAgainstUse) -> pd.DataFrame:
    """Return one row per kind of vector: its use per unit of energy, and its shares in the top directions of either kind."""
    rows = []
    for name, shares in energy.in_fisher.items():
        row: dict[str, object] = {"vectors": name, "use per energy": energy.use.get(name)}
        for kind, by_kind in (("read", shares), ("variance", energy.in_variance[name])):
            row |= {f"top {k} by {kind}": share for k, share in zip(energy.ks, by_kind, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)
