"""Experiment: how much of the dictionaries of locally and end-to-end trained SAEs lies outside the subspace that the network reads."""

import math

import numpy as np
import torch
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.degeneracy.basis_options import Dictionaries, DictionaryOptions
from crux.degeneracy.dictionary import DictionaryOutside
from crux.degeneracy.experiments.planted_dictionaries import (
    LOSSES,
    N_READ,
    N_UNREAD,
    build_planted_chain,
    create_sae,
    evaluate_dictionaries,
    train_planted_sae,
)
from crux.degeneracy.experiments.saved_dictionaries import evaluate_saved_saes, load_saved_saes
from crux.degeneracy.figures.dictionary_outside import dictionary_outside
from crux.degeneracy.networks.chain import Chain
from crux.runs.experiment import Experiment, last_row_of_history
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result, finite_or_none
from crux.sae.architectures.sae import SAE

N_SEEDS = 3

LOCAL_SHARE, END_TO_END_SHARE = (0.9, 1.0), (0.0, 0.3)
"""Expected ranges of the weighted share outside, after local and after end-to-end training.

Local training puts at least four of the six latents on the long unread directions, which also have the strongest codes.
"""

MIN_LOCAL_EXPLAINED, MAX_END_TO_END_EXPLAINED = 0.9, 0.3
"""Limits of the explained variance of the unread part of the activations, for local and for end-to-end training."""

MIN_GAIN = 0.2
"""Least amount by which the explained variance of the read part is higher after end-to-end training than after local training."""

MEASURES = ("mean", "weighted", "explained_inside", "explained_outside")
"""Fields of `DictionaryOutside` that are reported as metrics of the same name."""

HEADER = ("SAE", "living", "read", "outside", "weighted", "mostly outside", "EV inside", "EV outside")


def result(options: Dictionaries, run: ActiveRun) -> Result:
    """Compare saved SAEs if any are given, and otherwise SAEs trained here on a network with unread directions."""
    if options.saes:
        return compare_saved_saes(options.saes, options.dictionaries, run)
    return compare_trained_saes(options.dictionaries, run)


def compare_trained_saes(options: DictionaryOptions, run: ActiveRun) -> Result:
    """Train SAEs, and check for every seed that local training keeps the unread directions and end-to-end training drops them."""
    checks, rows = [], []
    columns: dict[str, list[DictionaryOutside]] = {loss: [] for loss in LOSSES}
    for seed in range(run.seed, run.seed + N_SEEDS):
        chain = build_planted_chain(seed)
        saes = {loss: train_sae_once(chain, loss, seed=seed, run=run) for loss in LOSSES}
        basis, outside_by_loss = evaluate_dictionaries(chain, saes, seed=seed, left_out=options.left_out)
        checks.append(Check(f"seed {seed}: directions that are read", float(basis.size), N_READ, N_READ))
        for loss, outside in outside_by_loss.items():
            columns[loss].append(outside)
            name = f"seed {seed}, {loss}"
            checks += build_checks(name, loss, outside, local=outside_by_loss["local"])
            rows.append(format_row(name, basis.size, outside))
            run.add_row(len(rows), {"weighted": outside.weighted, "mean": outside.mean})
    metrics = {
        f"{loss}/{key}": float(np.mean([getattr(outside, key) for outside in outsides]))
        for loss, outsides in columns.items()
        for key in (*MEASURES, "mostly")
    }
    shares = {
        loss: torch.cat([outside.share[outside.living] for outside in outsides]) for loss, outsides in columns.items()
    }
    figure = dictionary_outside(
        {loss: share.numpy() for loss, share in shares.items()},
        weighted={loss: metrics[f"{loss}/weighted"] for loss in shares},
        chance=N_UNREAD / (N_READ + N_UNREAD),
        subspace="what the output reads",
    )
    return Result(metrics, checks, {"outside": figure}, shares, markdown_table(HEADER, rows))


def train_sae_once(chain: Chain, loss: str, *, seed: int, run: ActiveRun) -> SAE:
    """Return the SAE trained with one loss from one seed. A resumed run loads it instead of training it again."""
    sae = create_sae(seed)

    def train() -> dict[str, Tensor]:
        train_planted_sae(sae, chain, loss, seed=seed, progress=run.progress)
        return sae.state_dict()

    sae.load_state_dict(compute_once(run.folder, f"sae_{loss}_{seed}", train))
    return sae


def build_checks(name: str, loss: str, outside: DictionaryOutside, *, local: DictionaryOutside) -> list[Check]:
    """Return the checks of one SAE."""
    end_to_end = loss != "local"
    explained = (-math.inf, MAX_END_TO_END_EXPLAINED) if end_to_end else (MIN_LOCAL_EXPLAINED, 1.0)
    checks = [
        Check(
            f"{name}: weighted share outside of what is read",
            outside.weighted,
            *(END_TO_END_SHARE if end_to_end else LOCAL_SHARE),
        ),
        Check(f"{name}: explained variance of what is not read", outside.explained_outside, *explained),
    ]
    if end_to_end:
        gain = outside.explained_inside - local.explained_inside
        checks.append(Check(f"{name}: explained variance of what is read, above local's", gain, MIN_GAIN, math.inf))
    return checks


def compare_saved_saes(folders: list[str], options: DictionaryOptions, run: ActiveRun) -> Result:
    """Report one row per SAE. Nothing is checked, since the correct values are unknown."""
    results = evaluate_saved_saes(load_saved_saes(folders), options, run)
    metrics, rows = {}, []
    for name, (_, dimensions, outside) in results.items():
        rows.append(format_row(name, dimensions, outside))
        metrics |= {f"{name}/{key}": getattr(outside, key) for key in MEASURES}
        metrics[f"{name}/explained_outside"] = finite_or_none(outside.explained_outside)  # there may be nothing outside
        metrics |= {f"{name}/mostly": float(outside.mostly), f"{name}/read": float(dimensions)}
    first = next(iter(results.values()))
    chance = 1 - first.dimensions / len(first.basis.mean)
    about = (
        f"read: the fewest directions that leave out at most {options.left_out:.0%} of Σ Λ; the share of a random direction "
        f"outside is {chance:.2f}"
    )
    figure = dictionary_outside(
        {name: saved.outside.share[saved.outside.living].numpy() for name, saved in results.items()},
        weighted={name: saved.outside.weighted for name, saved in results.items()},
        chance=chance,
        subspace="what the logits depend on",
    )
    arrays = {f"share/{name}": saved.outside.share for name, saved in results.items()}
    arrays |= {f"strength/{name}": saved.basis.strength.clone() for name, saved in results.items()}
    return Result(metrics, [], {"outside": figure}, arrays, f"{markdown_table(HEADER, rows)}\n\n{about}")


def format_row(name: str, read: int, outside: DictionaryOutside) -> list[object]:
    """Return the row of one SAE in the report's table."""
    shares, explained = (
        (f"{outside.mean:.3f}", f"{outside.weighted:.3f}"),
        (outside.explained_inside, outside.explained_outside),
    )
    return [name, int(outside.living.sum()), read, *shares, outside.mostly, *(f"{ev:.2f}" for ev in explained)]


EXPERIMENT = Experiment(Dictionaries, result, last_row_of_history)
