"""Which dictionary directions lie where the network does not look: SAEs trained locally and end to end."""

import math

import numpy as np
import torch
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.degeneracy.basis_options import Dictionaries, DictionaryOptions
from crux.degeneracy.dictionary import DictionaryOutside
from crux.degeneracy.experiments.planted_dictionaries import (
    LOSSES,
    READ,
    UNREAD,
    fresh_sae,
    judged,
    planted,
    train,
)
from crux.degeneracy.experiments.saved_dictionaries import judge_saved, read_saes
from crux.degeneracy.figures.dictionary_outside import dictionary_outside
from crux.degeneracy.networks.chain import Chain
from crux.runs.experiment import Experiment, keep_all_rows
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.sae.architectures.sae import SAE

SEEDS = 3

LOCAL, END_TO_END = (0.9, 1.0), (0.0, 0.3)
"""Bands of the weighted share outside: of six latents, local has four or more on the long directions, which also fire strongest."""

EXPLAINS, LEAVES = 0.9, 0.3
"""Explained variance of what is not read: local at least, end to end at most."""

BETTER = 0.2
"""By so much end to end explains more of the variance that is read."""

MEASURES = ("mean", "weighted", "explained_inside", "explained_outside")
"""Of `Outside`, those that are metrics by their own name."""

HEADER = ("SAE", "living", "read", "outside", "weighted", "mostly outside", "EV inside", "EV outside")


def result(options: Dictionaries, run: ActiveRun) -> Result:
    """Compare saved SAEs, if some are given; else those that are trained here on a network with unread directions."""
    if options.saes:
        return of_saved(options.saes, options.dictionaries, run)
    return of_planted(options.dictionaries, run)


def of_planted(options: DictionaryOptions, run: ActiveRun) -> Result:
    """Check that local keeps the unread directions and end to end drops them: in every seed, for every loss."""
    checks, rows = [], []
    columns: dict[str, list[DictionaryOutside]] = {loss: [] for loss in LOSSES}
    for seed in range(run.seed, run.seed + SEEDS):
        chain = planted(seed)
        saes = {loss: kept_sae(chain, loss, seed=seed, run=run) for loss in LOSSES}
        basis, found = judged(chain, saes, seed=seed, left_out=options.left_out)
        checks.append(Check(f"seed {seed}: directions that are read", float(basis.size), READ, READ))
        for loss, out in found.items():
            columns[loss].append(out)
            name = f"seed {seed}, {loss}"
            checks += planted_checks(name, loss, out, local=found["local"])
            rows.append(cells(name, basis.size, out))
            run.add_row(len(rows), {"weighted": out.weighted, "mean": out.mean})
    metrics = {
        f"{loss}/{key}": float(np.mean([getattr(out, key) for out in of]))
        for loss, of in columns.items()
        for key in (*MEASURES, "mostly")
    }
    shares = {loss: torch.cat([out.share[out.living] for out in of]) for loss, of in columns.items()}
    figure = dictionary_outside(
        {loss: share.numpy() for loss, share in shares.items()},
        weighted={loss: metrics[f"{loss}/weighted"] for loss in shares},
        chance=UNREAD / (READ + UNREAD),
        where="what the output reads",
    )
    return Result(metrics, checks, {"outside": figure}, shares, markdown_table(HEADER, rows))


def kept_sae(chain: Chain, loss: str, *, seed: int, run: ActiveRun) -> SAE:
    """Return the SAE that is trained on one loss from one seed; a piece of work."""
    sae = fresh_sae(seed)

    def weights() -> dict[str, Tensor]:
        train(sae, chain, loss, seed=seed, progress=run.progress)
        return sae.state_dict()

    sae.load_state_dict(compute_once(run.folder, f"sae_{loss}_{seed}", weights))
    return sae


def planted_checks(name: str, loss: str, out: DictionaryOutside, *, local: DictionaryOutside) -> list[Check]:
    """Return what should be found of one SAE."""
    end_to_end = loss != "local"
    explained = (-math.inf, LEAVES) if end_to_end else (EXPLAINS, 1.0)
    checks = [
        Check(f"{name}: weighted share outside of what is read", out.weighted, *(END_TO_END if end_to_end else LOCAL)),
        Check(f"{name}: explained variance of what is not read", out.explained_outside, *explained),
    ]
    if end_to_end:
        more = out.explained_inside - local.explained_inside
        checks.append(Check(f"{name}: explained variance of what is read, above local's", more, BETTER, math.inf))
    return checks


def of_saved(folders: list[str], options: DictionaryOptions, run: ActiveRun) -> Result:
    """Return one row per SAE; nobody knows what should come out, so nothing is checked."""
    found = judge_saved(read_saes(folders), options, run)
    metrics, rows = {}, []
    for name, (_, dimensions, out) in found.items():
        rows.append(cells(name, dimensions, out))
        metrics |= {f"{name}/{key}": getattr(out, key) for key in MEASURES}
        metrics |= {f"{name}/mostly": float(out.mostly), f"{name}/read": float(dimensions)}
    first = next(iter(found.values()))
    chance = 1 - first.dimensions / len(first.basis.mean)
    about = f"read: as few directions as leave out {options.left_out:.0%} of Σ Λ; of a random direction {chance:.2f} is outside"
    figure = dictionary_outside(
        {name: of.outside.share[of.outside.living].numpy() for name, of in found.items()},
        weighted={name: of.outside.weighted for name, of in found.items()},
        chance=chance,
        where="what the logits depend on",
    )
    arrays = {f"share/{name}": of.outside.share for name, of in found.items()}
    arrays |= {f"strength/{name}": of.basis.strength.clone() for name, of in found.items()}
    return Result(metrics, [], {"outside": figure}, arrays, f"{markdown_table(HEADER, rows)}\n\n{about}")


def cells(name: str, read: int, out: DictionaryOutside) -> list[object]:
    """Return a row of the table."""
    shares, explained = (f"{out.mean:.3f}", f"{out.weighted:.3f}"), (out.explained_inside, out.explained_outside)
    return [name, int(out.living.sum()), read, *shares, out.mostly, *(f"{ev:.2f}" for ev in explained)]


EXPERIMENT = Experiment(Dictionaries, result, keep_all_rows)
