"""Tables of the geometry of a sweep, with the two chance levels next to every cosine."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from crux.sae.geometry.bootstrap import Difference, Spread, bootstrap_difference, spread
from crux.sae.geometry.compare import ChanceCosines
from crux.sae.sweeps.geometry import CROSS_SEED, CROSS_TYPE, GEOMETRY_SEED, SAME_SEED, PlaceGeometry, SaePair
from crux.sae.sweeps.tables import format_spread

RELATIONS = (CROSS_SEED, CROSS_TYPE, SAME_SEED)


def saes_numbers(places: Sequence[PlaceGeometry]) -> pd.DataFrame:
    """Return one row per SAE, with all digits."""
    rows = []
    for place in places:
        for each in place.saes:
            row = {"place": place.place.title, "run": each.sae.run, "kind": each.sae.kind, "seed": each.sae.seed}
            row |= {"n_latents": each.sae.dictionary.n_latents, "alive": len(each.sae.dictionary.latents)}
            row |= {"within_max_cos": each.within.max_cos.mean} | _name_chance("within_max_cos", each.within.chance)
            row |= {"n_equal": place.n_equal, "within_max_cos_equal": float(np.mean(each.at_equal_number))}
            row |= _name_chance("within_max_cos_equal", place.chance)
            rows.append(row | {"encoder_decoder_cos": each.within.encoder_decoder})
    return pd.DataFrame(rows)


def pairs_numbers(places: Sequence[PlaceGeometry]) -> pd.DataFrame:
    """Return one row per pair of SAEs, with all digits."""
    rows = []
    for place in places:
        for pair in place.pairs:
            row = {"place": place.place.title, "relation": pair.relation}
            for name, sae in (("a", pair.a), ("b", pair.b)):
                row |= {f"run_{name}": sae.run, f"kind_{name}": sae.kind, f"seed_{name}": sae.seed}
            codes = {f"code_correlation_{name}": value for name, value in pair.codes._asdict().items()}
            rows.append(row | pair.geometry.numbers() | codes)
    return pd.DataFrame(rows)


def _name_chance(name: str, chance: ChanceCosines) -> dict[str, float]:
    return {f"{name}/{level}": value for level, value in zip(ChanceCosines._fields, chance.means(), strict=True)}


def within_table(places: Sequence[PlaceGeometry]) -> pd.DataFrame:
    """Return a table to read: one row per kind of SAE."""
    rows = []
    for place in places:
        numbers = saes_numbers([place])
        for kind, group in numbers.groupby("kind", sort=False):
            rows.append(
                {
                    **_name_place(places, place), "SAE": kind, "seeds": len(group),
                    "alive latents": _format_counts(_read_column(group, "alive")),
                    "within, all alive": _with_chance(group, "within_max_cos"),
                    "latents": place.n_equal,
                    "within, equal number": _with_chance(group, "within_max_cos_equal"),
                    "cos(encoder, decoder)": format_spread(_read_column(group, "encoder_decoder_cos")),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def pairs_table(places: Sequence[PlaceGeometry]) -> pd.DataFrame:
    """Return a table to read: one row per relation and two kinds of SAEs."""
    rows = []
    for place in places:
        for relation, a, b in product(RELATIONS, place.kinds, place.kinds):
            if not (pairs := place.select_pairs(relation, a, b)):
                continue
            group = pairs_numbers([place._replace(pairs=pairs)])
            correlation = group[["code_correlation_matched", "code_correlation_chance_matched"]].mean()
            rows.append(
                {
                    **_name_place(places, place), "pairs": f"{relation} ({len(group)})", "A": a, "B": b,
                    "A → B": _with_chance(group, "to_max_cos"),
                    "B → A": _with_chance(group, "from_max_cos"),
                    "matched": _with_chance(group, "matched_cos"),
                    "shared": format_spread(_read_column(group, "shared_share")),
                    "novel A, B": f"{group['novel_share_a'].mean():.2f}, {group['novel_share_b'].mean():.2f}",
                    "codes": f"{correlation.iloc[0]:.2f} [{correlation.iloc[1]:.2f}]",
                    "own neighbours": f"{group['mixing_excess'].mean():+.2f} [{group['mixing_excess/isotropic'].mean():+.2f}, "
                    f"{group['mixing_excess/shaped'].mean():+.2f}]",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


class Measured(NamedTuple):
    """The cosines of one kind of SAE, one array per SAE or pair of SAEs, and the chance levels."""

    kind: str
    values: list[Float[np.ndarray, "_latents"]]
    chance: tuple[float, float]
    """Isotropic and covariance-shaped."""


class MeasuredDifference(NamedTuple):
    """The difference of a mean cosine between two kinds of SAEs."""

    place: PlaceGeometry
    measure: str
    a: Measured
    b: Measured
    over_seeds: Spread
    within_pair: Difference
    """Of the first SAE, or pair of SAEs, of both kinds."""


def measure_differences(places: Sequence[PlaceGeometry]) -> list[MeasuredDifference]:
    """Return the differences between kinds of SAEs in the similarity within SAEs, between seeds, and to the first kind."""
    differences = []
    for place in places:
        for measure, measured in _iterate_measures(place):
            for a, b in combinations([each for each in measured if each.values], 2):
                means = [[float(np.mean(values, dtype=np.float64)) for values in each.values] for each in (a, b)]
                over_seeds = spread([left - right for left, right in product(*means)])
                within_pair = bootstrap_difference(a.values[0], b.values[0], seed=GEOMETRY_SEED)
                differences.append(MeasuredDifference(place, measure, a, b, over_seeds, within_pair))
    return differences


def _iterate_measures(place: PlaceGeometry) -> Iterator[tuple[str, list[Measured]]]:
    kinds = place.kinds
    own = {kind: [each.at_equal_number for each in place.saes if each.sae.kind == kind] for kind in kinds}
    yield f"within SAE, {place.n_equal:,} latents", [Measured(kind, own[kind], place.chance.means()) for kind in kinds]
    between = {kind: place.select_pairs(CROSS_SEED, kind, kind) for kind in kinds}
    yield "cross-seed, both directions", [_measure(kind, between[kind], _both_directions) for kind in kinds]
    yield "cross-seed, matched", [_measure(kind, between[kind], _matched) for kind in kinds]
    for relation in (CROSS_TYPE, SAME_SEED):
        to_first = {kind: place.select_pairs(relation, kind, kinds[0]) for kind in kinds[1:]}
        yield f"{relation}, to {kinds[0]}", [_measure(kind, pairs, _to) for kind, pairs in to_first.items()]


Cosines = tuple[Float[np.ndarray, "_latents"], ChanceCosines]


def _to(pair: SaePair) -> Cosines:
    return pair.geometry.to.cosines, pair.geometry.chance_to


def _both_directions(pair: SaePair) -> Cosines:
    geometry = pair.geometry
    chance = zip(geometry.chance_to, geometry.chance_back, strict=True)
    cosines = np.concatenate([geometry.to.cosines, geometry.back.cosines])
    return cosines, ChanceCosines(*(np.concatenate(levels) for levels in chance))


def _matched(pair: SaePair) -> Cosines:
    return pair.geometry.matching.cosines, pair.geometry.chance_matched


def _measure(kind: str, pairs: Sequence[SaePair], read: Callable[[SaePair], Cosines]) -> Measured:
    """Return the cosines of some pairs, with the mean of their chance levels."""
    if not pairs:
        return Measured(kind, [], (float("nan"), float("nan")))
    found = [read(pair) for pair in pairs]
    isotropic, shaped = np.mean([chance.means() for _, chance in found], axis=0)
    return Measured(kind, [values for values, _ in found], (float(isotropic), float(shaped)))


def differences_table(places: Sequence[PlaceGeometry], differences: Sequence[MeasuredDifference]) -> pd.DataFrame:
    """Return a table to read: one row per measure and two kinds of SAEs."""
    rows = []
    for each in differences:
        spread_text = format_spread_of_pairs(each.over_seeds)
        rows.append(
            {
                **_name_place(places, each.place), "mean largest cosine": each.measure, "difference": f"{each.a.kind} − {each.b.kind}",
                "mean over seeds": spread_text,
                "within this pair, 95 %": f"{each.within_pair.mean:+.3f} ({each.within_pair.low:+.3f} to {each.within_pair.high:+.3f})",
                **{
                    title: f"{measured.kind}: {_mean_of(measured):.3f} {_format_levels(measured.chance)}"
                    for title, measured in (("first", each.a), ("second", each.b))
                },
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def differences_numbers(differences: Sequence[MeasuredDifference]) -> pd.DataFrame:
    """Return one row per difference, with all digits."""
    rows = []
    for each in differences:
        row = {"place": each.place.place.title, "measure": each.measure, "kind_a": each.a.kind, "kind_b": each.b.kind}
        row |= {f"difference_{name}": value for name, value in each.over_seeds._asdict().items()}
        row |= {f"within_pair_{name}": value for name, value in each.within_pair._asdict().items()}
        for name, measured in (("a", each.a), ("b", each.b)):
            row |= {f"mean_{name}": _mean_of(measured)}
            row |= dict(zip((f"mean_{name}/isotropic", f"mean_{name}/shaped"), measured.chance, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def format_spread_of_pairs(spread_: Spread) -> str:
    """Return `mean (lowest to highest, n combinations of seeds)` with signs."""
    if spread_.n == 1:
        return f"{spread_.mean:+.3f} (one pair)"
    return f"{spread_.mean:+.3f} ({spread_.lowest:+.3f} to {spread_.highest:+.3f}, {spread_.n} combinations)"


def _mean_of(measured: Measured) -> float:
    return float(np.mean([np.mean(values, dtype=np.float64) for values in measured.values]))


def _name_place(places: Sequence[PlaceGeometry], place: PlaceGeometry) -> dict[str, str]:
    return {"hook point": place.place.title} if len(places) > 1 else {}


def _read_column(rows: pd.DataFrame, name: str) -> list[float]:
    """Return the known values of a column."""
    values = rows[[name]].to_numpy(float)[:, 0]
    return values[~np.isnan(values)].tolist()


def _format_counts(values: Sequence[float]) -> str:
    lowest, highest = int(min(values)), int(max(values))
    return f"{np.mean(values):,.0f}" if lowest == highest else f"{np.mean(values):,.0f} ({lowest:,} to {highest:,})"


def _with_chance(rows: pd.DataFrame, name: str) -> str:
    isotropic, shaped = (float(np.mean(_read_column(rows, f"{name}/{level}"))) for level in ChanceCosines._fields)
    return f"{format_spread(_read_column(rows, name))} {_format_levels((isotropic, shaped))}"


def _format_levels(levels: tuple[float, float]) -> str:
    return f"[{levels[0]:.3f}, {levels[1]:.3f}]"
