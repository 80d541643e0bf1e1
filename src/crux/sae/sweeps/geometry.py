"""The geometry of a sweep: every SAE with itself, and every pair of SAEs at a place."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from crux.config.progress import track
from crux.sae.geometry.chance import draw_directions
from crux.sae.geometry.code_correlation import CodeSimilarity, compare_codes
from crux.sae.geometry.compare import (
    ChanceCosines,
    PairGeometry,
    WithinGeometry,
    compare_dictionaries,
    describe_dictionary,
)
from crux.sae.geometry.equal_numbers import find_within_at
from crux.sae.geometry.nearest import find_nearest
from crux.sae.sweeps.dictionaries import Place, SweepSae

GEOMETRY_SEED = 0
"""Seed of random directions, of subsets of latents and of the bootstrap, so that a report can be repeated."""

CROSS_SEED, CROSS_TYPE, SAME_SEED = "cross-seed", "cross-type", "cross-type, same seed"
"""Pairs of SAEs: of one kind with two seeds, of two kinds with different seeds, and of two kinds with the same seed. The last share the
dictionary with which their training begins, if architecture and size are the same."""


class SaeGeometry(NamedTuple):
    """One SAE compared with itself."""

    sae: SweepSae
    within: WithinGeometry
    """With all alive latents."""
    at_equal_number: Float[np.ndarray, "_latents"]
    """The largest cosine of each latent within subsets of as many latents as the smallest SAE at the place has alive."""


class SaePair(NamedTuple):
    """Two SAEs that are compared."""

    relation: str
    """`CROSS_SEED`, `CROSS_TYPE` or `SAME_SEED`."""
    a: SweepSae
    b: SweepSae
    geometry: PairGeometry
    codes: CodeSimilarity


class PlaceGeometry(NamedTuple):
    """All comparisons at one place."""

    place: Place
    n_equal: int
    """The smallest number of alive latents of an SAE."""
    chance: ChanceCosines
    """Largest cosines within random dictionaries of `n_equal` directions."""
    saes: list[SaeGeometry]
    pairs: list[SaePair]

    @property
    def kinds(self) -> list[str]:
        """The kinds of SAEs in the order of the runs; the others are compared with the first one, usually `local`."""
        return list(dict.fromkeys(each.sae.kind for each in self.saes))

    def select_pairs(self, relation: str, a: str, b: str) -> list[SaePair]:
        """Return the pairs of a kind with another kind, or with itself, of one relation; A is always of the kind `a`."""
        pairs = [pair for pair in self.pairs if pair.relation == relation]
        return [pair for pair in pairs if (pair.a.kind, pair.b.kind) == (a, b)]


def compare_place(place: Place) -> PlaceGeometry:
    """Compare all SAEs at a place with each other, and with random directions."""
    n_equal = min((len(sae.dictionary.decoder) for sae in place.saes), default=0)
    random = draw_directions(n_equal, place.covariance, seed=GEOMETRY_SEED)
    chance = ChanceCosines(*(find_nearest(directions).cosines for directions in random))
    saes = [
        SaeGeometry(
            sae,
            describe_dictionary(sae.dictionary, covariance=place.covariance, seed=GEOMETRY_SEED),
            find_within_at(sae.dictionary.decoder, n=n_equal, seed=GEOMETRY_SEED),
        )
        for sae in track(place.saes, "comparing each SAE with itself")
    ]
    pairs = [_compare_pair(place, a, b) for a, b in track(list(_iterate_pairs(place.saes)), "comparing pairs of SAEs")]
    return PlaceGeometry(place, n_equal, chance, saes, pairs)


def _iterate_pairs(saes: Sequence[SweepSae]) -> list[tuple[SweepSae, SweepSae]]:
    """Return each pair once; of two kinds, the later one is A, so that `to` leads from the other losses to the first one."""
    return [
        (a, b) if a.kind == b.kind else (b, a) for a, b in combinations(saes, 2) if (a.kind, a.seed) != (b.kind, b.seed)
    ]


def _compare_pair(place: Place, a: SweepSae, b: SweepSae) -> SaePair:
    relation = CROSS_SEED if a.kind == b.kind else SAME_SEED if a.seed == b.seed else CROSS_TYPE
    geometry = compare_dictionaries(a.dictionary, b.dictionary, covariance=place.covariance, seed=GEOMETRY_SEED + 1)
    rows, columns = a.dictionary.latents[geometry.matching.rows], b.dictionary.latents[geometry.matching.columns]
    codes = compare_codes(a.codes, b.codes, rows=rows, columns=columns, context=place.context)
    return SaePair(relation, a, b, geometry, codes)
