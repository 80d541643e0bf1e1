"""The part of a sweep's report about the geometry of dictionaries: tables, figures, and files with all numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from crux.config.schema import ReportGeometry
from crux.sae.figures.geometry_similarity import SimilarityHistogram, SimilarityPanel, plot_similarities
from crux.sae.figures.geometry_view import PlaneOfTwo, plot_planes
from crux.sae.geometry.bootstrap import RESAMPLES
from crux.sae.geometry.equal_numbers import DRAWS
from crux.sae.geometry.neighbour_mixing import NEIGHBOURS, measure_mixing
from crux.sae.geometry.views import check_umap, list_coordinates, project_pca, project_umap
from crux.sae.sweeps.dictionaries import MIN_ALIVE, read_places
from crux.sae.sweeps.finished_runs import FinishedRuns
from crux.sae.sweeps.geometry import (
    CROSS_SEED,
    CROSS_TYPE,
    GEOMETRY_SEED,
    SAME_SEED,
    PlaceGeometry,
    SaePair,
    compare_place,
)
from crux.sae.sweeps.geometry_tables import (
    differences_numbers,
    differences_table,
    measure_differences,
    pairs_numbers,
    pairs_table,
    saes_numbers,
    within_table,
)

_CHANCE = (
    "In square brackets: the same with isotropic random directions, and with random directions that have the covariance of "
    "the activations"
)
_NOTES = (
    "Mean over alive latents of the largest signed cosine with another alive latent of the same SAE; mean over seeds (lowest to "
    f"highest). {_CHANCE}, at the same number of directions. `equal number`: in random subsets ({DRAWS} draws) of as many latents "
    "as the smallest SAE has alive, because more latents are more similar by chance. The cosine of encoder and decoder is high by "
    "construction early in the training if the initial encoder is the transposed decoder.",
    "`A → B`: mean over the latents of A of the largest signed cosine with a latent of B. `matched`: mean cosine of one-to-one "
    f"partners (PW-MCC). {_CHANCE} in place of B (for `B → A`: of A). `shared`: share of partners by decoder that are partners by "
    "encoder too, with a decoder cosine of 0.7 or more. `novel`: share of latents whose largest cosine is below the 99th percentile "
    "of covariance-shaped chance; of random directions it is 0.99. `codes`: correlation of the codes of partners on the same "
    "held-out tokens; in brackets after the codes of B were moved to other windows. `own neighbours`: share of the "
    f"{NEIGHBOURS} nearest neighbours from the same SAE minus that of a perfect mixture (0: mixed); in brackets with random "
    "directions in place of B. Cross-type pairs have different seeds, except those named `same seed`, which begin with the same "
    "dictionary (if architecture and size are the same) and share structure for that reason. Mean over pairs (lowest to highest).",
    "Differences of mean largest cosines between kinds of SAEs: mean over all combinations of seeds (lowest to highest). "
    "`within this pair`: bootstrap percentile interval over the latents of the first pair "
    f"({RESAMPLES:,} resamples, seed {GEOMETRY_SEED}). Latents are not independent draws, so it is no uncertainty of a claim about "
    f"a loss. {_CHANCE}.",
)
TITLES = ("Similarity within SAEs", "Similarity of pairs of SAEs", "Differences in similarity")
NOTES = dict(zip(TITLES, _NOTES, strict=True))
"""The text between the title of a table and the table."""


class GeometrySection(NamedTuple):
    """The geometry of a sweep's SAEs, ready to be written."""

    tables: dict[str, pd.DataFrame]
    """Tables to read, by the titles of `NOTES`."""
    files: dict[str, pd.DataFrame]
    """Tables with all digits and the coordinates of the views, by file name."""
    figures: dict[str, Figure]
    remarks: list[str]
    """Sentences about what is missing."""


def describe_geometry(folder: Path, runs: FinishedRuns, *, view: ReportGeometry) -> GeometrySection:
    """Compare the dictionaries of all SAEs of a sweep's finished runs.

    Args:
        view: `pca`, or `umap` for a view by UMAP too.

    Raises:
        UserError: if there is no SAE on a language model, its network or text cannot be loaded, or umap-learn is not installed.
    """
    if view is ReportGeometry.umap:
        check_umap()
    places = [compare_place(place) for place in read_places(folder, runs)]
    remarks = [
        f"{', '.join(f'`{run}`' for run in each.place.left_out)}: fewer than {MIN_ALIVE} latents fire on "
        f"{each.place.n_tokens:,} held-out tokens, so the SAE is not compared."
        for each in places
        if each.place.left_out
    ]
    places = [each for each in places if each.saes]
    differences = measure_differences(places)
    tables = dict(
        zip(NOTES, (within_table(places), pairs_table(places), differences_table(places, differences)), strict=True)
    )
    files = {
        "geometry_saes.csv": saes_numbers(places),
        "geometry_pairs.csv": pairs_numbers(places),
        "geometry_differences.csv": differences_numbers(differences),
    }
    n_tokens = sorted({each.place.n_tokens for each in places})
    remarks += [f"Latents are alive if they fire on one of {n:,} held-out tokens." for n in n_tokens]
    if places and not any(pair.relation == CROSS_TYPE for each in places for pair in each.pairs):
        remarks.append(
            "There are no cross-type pairs with different seeds: the sweep needs two seeds or more, and two kinds of SAEs."
        )
    figures = {"geometry_similarity": plot_similarities(make_panels(places))} if places else {}
    methods = ["pca"] if view is ReportGeometry.pca else ["pca", "umap"]
    for method in methods:
        planes, coordinates = _make_planes(places, method=method)
        if planes:
            axis = "principal component" if method == "pca" else "UMAP"
            figures[f"geometry_{method}"] = plot_planes(planes, axis=axis)
            files[f"geometry_{method}.csv"] = coordinates
    return GeometrySection({title: table for title, table in tables.items() if len(table)}, files, figures, remarks)


def make_panels(places: Sequence[PlaceGeometry]) -> list[SimilarityPanel]:
    """Return the panels of each place: within SAEs, between seeds, and from and to the first kind of SAE."""
    panels: list[SimilarityPanel] = []
    for place in places:
        row, kinds = place.place.title, place.kinds
        first = kinds[0]
        own = {kind: [each.at_equal_number for each in place.saes if each.sae.kind == kind] for kind in kinds}
        within = [SimilarityHistogram(kind, np.concatenate(own[kind]), *place.chance) for kind in kinds]
        panels.append(SimilarityPanel(row, f"within SAE, {place.n_equal:,} latents", within))
        seeds = {kind: place.select_pairs(CROSS_SEED, kind, kind) for kind in kinds}
        histograms = [_pool(kind, pairs, to=True, back=True) for kind, pairs in seeds.items() if pairs]
        panels.append(SimilarityPanel(row, "cross-seed, both directions", histograms))
        relation = CROSS_TYPE if any(pair.relation == CROSS_TYPE for pair in place.pairs) else SAME_SEED
        others = {kind: pairs for kind in kinds[1:] if (pairs := place.select_pairs(relation, kind, first))}
        for title, to in ((f"{relation}: others → {first}", True), (f"{relation}: {first} → others", False)):
            histograms = [_pool(kind, pairs, to=to, back=not to) for kind, pairs in others.items()]
            panels.append(SimilarityPanel(row, title, histograms))
    return panels


def _pool(kind: str, pairs: Sequence[SaePair], *, to: bool, back: bool) -> SimilarityHistogram:
    """Return the latents of several pairs in one histogram: those of A (`to`), of B (`back`), or both."""
    parts = [(p.geometry.to.cosines, *p.geometry.chance_to) for p in pairs if to]
    parts += [(p.geometry.back.cosines, *p.geometry.chance_back) for p in pairs if back]
    return SimilarityHistogram(kind, *(np.concatenate(values) for values in zip(*parts, strict=True)))


def _make_planes(places: Sequence[PlaceGeometry], *, method: str) -> tuple[list[PlaneOfTwo], pd.DataFrame]:
    """Return one plane per kind of SAE with the first kind, or of two seeds if there is one kind; and all coordinates."""
    planes: list[PlaneOfTwo] = []
    coordinates: list[pd.DataFrame] = []
    for place in places:
        for pair in _choose_pairs(place):
            dictionaries = (pair.a.dictionary, pair.b.dictionary)
            decoders = [dictionary.decoder for dictionary in dictionaries]
            a, b = project_pca(decoders) if method == "pca" else project_umap(decoders, seed=GEOMETRY_SEED)
            labels = f"{pair.a.kind}, seed {pair.a.seed}", f"{pair.b.kind}, seed {pair.b.seed}"
            in_plane = measure_mixing(torch.from_numpy(a), torch.from_numpy(b), euclidean=True).excess
            first, second = (place.kinds.index(sae.kind) for sae in (pair.a, pair.b))
            colors = (first, second) if first != second else (0, 1)
            planes.append(PlaneOfTwo(place.place.title, labels, colors, (a, b), pair.geometry.mixing.excess, in_plane))
            latents = {label: dictionary.latents for label, dictionary in zip(labels, dictionaries, strict=True)}
            frame = list_coordinates(dict(zip(labels, (a, b), strict=True)), latents)
            frame.insert(0, "pair", " and ".join(labels))
            frame.insert(0, "place", place.place.title)
            coordinates.append(frame)
    return planes, pd.concat(coordinates, ignore_index=True) if coordinates else pd.DataFrame()


def _choose_pairs(place: PlaceGeometry) -> list[SaePair]:
    kinds = place.kinds
    if len(kinds) == 1:
        return place.select_pairs(CROSS_SEED, kinds[0], kinds[0])[:1]
    chosen = [
        [*place.select_pairs(CROSS_TYPE, kind, kinds[0]), *place.select_pairs(SAME_SEED, kind, kinds[0])][:1]
        for kind in kinds[1:]
    ]
    return [pair for pairs in chosen for pair in pairs]
