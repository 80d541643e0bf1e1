"""Which dictionary directions lie where the network does not look: SAEs trained locally and end to end."""

import math

import numpy as np
import torch

from crux.config.markdown import markdown_table
from crux.config.schema import Config
from crux.degeneracy.dictionary import Outside
from crux.degeneracy.experiments.planted_dictionaries import LOSSES, READ, UNREAD, judged, planted, trained
from crux.degeneracy.experiments.saved_dictionaries import judge_saved, read_saes
from crux.degeneracy.figures.dictionary_outside import dictionary_outside
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder

SEEDS = 3

LOCAL, END_TO_END = (0.9, 1.0), (0.0, 0.3)
"""Bands of the weighted share outside: of six latents, local has four or more on the long directions, which also fire strongest."""

EXPLAINS, LEAVES = 0.9, 0.3
"""Explained variance of what is not read: local at least, end to end at most."""

BETTER = 0.2
"""By so much end to end explains more of the variance that is read."""

HEADER = ("SAE", "living", "read", "outside", "weighted", "mostly outside", "EV inside", "EV outside")


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """The saved SAEs, where some are given; else those that are trained here on a network with unread directions."""
    settings = config.interaction_basis
    assert settings is not None
    assert settings.dictionaries is not None
    if settings.saes:
        return of_saved(
            settings.saes,
            tokens=settings.dictionaries.tokens,
            left_out=settings.dictionaries.left_out,
            seed=config.seed,
        )
    return of_planted(config, add_row, left_out=settings.dictionaries.left_out)


def of_planted(config: Config, add_row: AddRow, *, left_out: float) -> Result:
    """Local keeps the unread directions, end to end drops them: in every seed, for every loss."""
    checks, metrics, rows = [], {}, []
    columns: dict[str, list[Outside]] = {loss: [] for loss in LOSSES}
    for i in range(SEEDS):
        seed = config.seed + i
        chain = planted(seed)
        saes = {loss: trained(chain, loss, seed=seed, progress=config.trainer.progress) for loss in LOSSES}
        basis, found = judged(chain, saes, seed=seed, left_out=left_out)
        checks.append(Check(f"seed {seed}: directions that are read", float(basis.size), READ, READ))
        for loss, out in found.items():
            columns[loss].append(out)
            name = f"seed {seed}, {loss}"
            low, high = LOCAL if loss == "local" else END_TO_END
            checks.append(Check(f"{name}: weighted share outside of what is read", out.weighted, low, high))
            low, high = (EXPLAINS, 1.0) if loss == "local" else (-math.inf, LEAVES)
            checks.append(Check(f"{name}: explained variance of what is not read", out.explained_outside, low, high))
            if loss != "local":
                more = out.explained_inside - found["local"].explained_inside
                checks.append(
                    Check(f"{name}: explained variance of what is read, above local's", more, BETTER, math.inf)
                )
            rows.append(cells(name, basis.size, out))
            add_row(len(rows), {"weighted": out.weighted, "mean": out.mean})
    for loss, of in columns.items():
        for key in ("mean", "weighted", "explained_inside", "explained_outside"):
            metrics[f"{loss}/{key}"] = float(np.mean([getattr(out, key) for out in of]))
        metrics[f"{loss}/mostly"] = float(np.mean([out.mostly for out in of]))
    shares = {loss: torch.cat([out.share[out.living] for out in of]) for loss, of in columns.items()}
    figure = dictionary_outside(
        {loss: share.numpy() for loss, share in shares.items()},
        weighted={loss: metrics[f"{loss}/weighted"] for loss in shares},
        chance=UNREAD / (READ + UNREAD),
        where="what the output reads",
    )
    return Result(metrics, checks, {"outside": figure}, shares, markdown_table(HEADER, rows))


def of_saved(folders: list[str], *, tokens: int, left_out: float, seed: int) -> Result:
    """A row an SAE; nobody knows what should come out, so nothing is checked."""
    found = judge_saved(read_saes(folders), tokens=tokens, left_out=left_out, seed=seed)
    metrics, rows = {}, []
    for name, (_, dimensions, out) in found.items():
        rows.append(cells(name, dimensions, out))
        metrics |= {
            f"{name}/{key}": getattr(out, key) for key in ("mean", "weighted", "explained_inside", "explained_outside")
        }
        metrics |= {f"{name}/mostly": float(out.mostly), f"{name}/read": float(dimensions)}
    first = next(iter(found.values()))
    chance = 1 - first.dimensions / len(first.basis.mean)
    about = f"read: as few directions as leave out {left_out:.0%} of Σ Λ; of a random direction {chance:.2f} is outside"
    figure = dictionary_outside(
        {name: of.outside.share[of.outside.living].numpy() for name, of in found.items()},
        weighted={name: of.outside.weighted for name, of in found.items()},
        chance=chance,
        where="what the logits hang on",
    )
    arrays = {f"share/{name}": of.outside.share for name, of in found.items()}
    arrays |= {f"strength/{name}": of.basis.strength.clone() for name, of in found.items()}
    return Result(metrics, [], {"outside": figure}, arrays, f"{markdown_table(HEADER, rows)}\n\n{about}")


def cells(name: str, read: int, out: Outside) -> list[object]:
    """Return a row of the table."""
    shares, explained = (f"{out.mean:.3f}", f"{out.weighted:.3f}"), (out.explained_inside, out.explained_outside)
    return [name, int(out.living.sum()), read, *shares, out.mostly, *(f"{ev:.2f}" for ev in explained)]
