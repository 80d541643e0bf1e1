"""A sweep's runs as tables: side by side, and at equal L0."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from crux.config.markdown import markdown_table
from crux.runs.run_folder import comparable
from crux.sae.sweeps.curves import Curve
from crux.sae.sweeps.matched import Ratio, ratio
from crux.sae.sweeps.runs import ASKED, LOSS, STEPS, Run, settings

MEASURED = {
    "L0": "l0",
    "CE loss increase": "ce_increase",
    "KL": "kl",
    "explained variance": "explained_variance",
    "loss recovered (mean)": "loss_recovered_mean",
    "norm ratio": "norm_ratio",
    "network's loss increase": "loss_increase",
    "output explained variance": "output_explained_variance",
    "features recovered": "recovered",
    "mean max cosine": "mean_max_cosine",
    "checks": "checks",
    "checks failed": "checks_failed",
}
"""Columns of the table, where a run has them, and the metrics in them; the last six are toy models'."""

RATE = "final/tokens_per_second"


class Shown(NamedTuple):
    """A table."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        return markdown_table(self.header, self.rows)

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.header, *self.rows])
        return out.getvalue()


def runs_table(runs: Sequence[Run]) -> Shown:
    """A line a setting: mean over seeds, with the range."""
    rows: list[list[str]] = []
    groups, titles = _by_setting(runs)
    patterns = MEASURED | {"alive": r"alive_heldout_\d+_frac"}
    columns = {t: p for t, p in patterns.items() if any(_values(run, p) for run in runs)}
    for setting, members in groups.items():
        measured = [[v for i in members for v in _values(runs[i], pattern)] for pattern in columns.values()]
        rows.append([*setting, str(len(members)), *(spread(values) for values in measured)])
    return Shown([*titles, "seeds", *columns], rows)


def _values(run: Run, pattern: str) -> list[float]:
    return [value for name, value in run.metrics.items() if re.fullmatch(f"final/{pattern}", name)]


def _by_setting(runs: Sequence[Run]) -> tuple[dict[tuple[str, ...], list[int]], list[str]]:
    told = settings(runs)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, setting in enumerate(told):
        groups[tuple(setting.values())].append(i)
    return groups, list(told[0])


def times_table(runs: Sequence[Run]) -> Shown:
    """A line a setting: training tokens a second, and time a token as a ratio to loss=e2e, all else equal."""
    rows: list[list[str]] = []
    told = settings(runs)
    groups, titles = _by_setting(runs)
    for setting, members in groups.items():
        rates = [runs[i].metrics[RATE] for i in members if RATE in runs[i].metrics]
        times = [t for i in members if (t := _time(i, runs, told)) is not None]
        rows.append([*setting, f"{sum(rates) / len(rates):,.0f}" if rates else "–", spread(times)])
    return Shown([*titles, "tokens/s", "time / e2e"], rows)


OF_THE_LOSS = (LOSS, ASKED, STEPS)
"""Settings in which a run may differ from the e2e run that it is timed against."""


def _time(i: int, runs: Sequence[Run], told: Sequence[Mapping[str, str]]) -> float | None:
    """A run's time per token over that of the e2e run of its seed and its other settings, where both are known."""

    def rest(j: int) -> dict[str, str]:
        return {k: v for k, v in told[j].items() if k not in OF_THE_LOSS and not k.startswith("loss.")}

    rivals = [
        r.metrics[RATE]
        for j, r in enumerate(runs)
        if r.loss == "e2e" and r.seed == runs[i].seed and rest(j) == rest(i) and RATE in r.metrics
    ]
    return rivals[0] / runs[i].metrics[RATE] if rivals and RATE in runs[i].metrics else None


class Match(NamedTuple):
    """A loss at an L0."""

    curve: Curve
    l0: float
    values: dict[int, float]
    """Seed → CE loss increase."""
    baseline: str
    """The loss that the ratio is to: the first that is there of local, e2e, e2e_ds and the others by name."""
    ratio: Ratio | None
    """None for the baseline itself, and where no seed has both."""


def matches(curves: Sequence[Curve], *, at: Sequence[float]) -> list[Match]:
    """CE loss increase at each L0, for every loss; nothing where no loss was asked for two sparsities or more."""
    found: list[Match] = []
    for _, group in groupby(curves, key=lambda c: c.comparable):
        compared = list(group)
        if not any(len(runs) > 1 for curve in compared for runs in curve.runs.values()):
            continue
        for l0 in at:
            base = compared[0].at("ce_increase", l0=l0)
            for curve in compared:
                values = curve.at("ce_increase", l0=l0)
                seeds = sorted(values.keys() & base.keys()) if curve is not compared[0] else []
                told = ratio([values[s] for s in seeds], [base[s] for s in seeds]) if seeds else None
                found.append(Match(curve, l0, values, compared[0].loss, told))
    return found


def matched_table(found: Sequence[Match]) -> Shown:
    """For people: a line an L0, a column a loss, then the ratios."""
    places = _places(found)
    losses = list(dict.fromkeys(m.curve.loss for m in found))
    pairs = list(dict.fromkeys((m.curve.loss, m.baseline) for m in found if m.curve.loss != m.baseline))
    header = [
        *places,
        "L0",
        *(f"CE loss increase, {loss}" for loss in losses),
        *(f"{loss} / {baseline}" for loss, baseline in pairs),
    ]
    rows: list[list[str]] = []
    for (_, l0), group in groupby(found, key=lambda m: (m.curve.comparable, m.l0)):
        line = list(group)
        values = {m.curve.loss: list(m.values.values()) for m in line}
        ratios = {(m.curve.loss, m.baseline): m.ratio for m in line}
        rows.append(
            [
                *_place(line[0].curve, places),
                f"{l0:g}",
                *(spread(values.get(loss, [])) for loss in losses),
                *(ratio_words(ratios.get(pair)) for pair in pairs),
            ]
        )
    return Shown(header, rows)


def matched_csv(found: Sequence[Match]) -> Shown:
    """For programs: a line an L0 and loss, every number in full."""
    places = _places(found)
    measured = ["ce_increase", "ce_increase_min", "ce_increase_max"]
    compared = ["baseline", "ratio", "ratio_min", "ratio_max", "ratio_ci95_low", "ratio_ci95_high"]
    rows: list[list[str]] = []
    for m in found:
        v, r = list(m.values.values()), m.ratio
        numbers = [sum(v) / len(v), min(v), max(v)] if v else [None] * 3
        ratios = [r.of_means, r.lowest, r.highest, *(r.interval or (None, None))] if r is not None else [None] * 5
        told = [m.baseline, *map(_number, ratios)]
        rows.append([*_place(m.curve, places), f"{m.l0:g}", m.curve.loss, str(len(v)), *map(_number, numbers), *told])
    return Shown([*places, "l0", "loss", "seeds", *measured, *compared], rows)


def _places(found: Sequence[Match]) -> list[str]:
    """Columns that tell apart what is not compared."""
    return [*found[0].curve.place, *(["architecture"] if found[0].curve.architecture else [])]


def _place(curve: Curve, places: Sequence[str]) -> list[str]:
    values = curve.place | {"architecture": curve.architecture}
    return [values[title] for title in places]


def runs_csv(runs: Sequence[Run]) -> Shown:
    """A line a run: its folder, every key that differs between runs, every metric."""
    flat = [comparable(run.config) for run in runs]
    always = ("loss.name", "sparsity", "seed")
    keys = sorted({key for keys in flat for key in keys})
    keys = [key for key in keys if key in always or len({str(keys.get(key)) for keys in flat}) > 1]
    metrics = sorted({name for run in runs for name in run.metrics})
    rows = [
        [run.name, *("" if keys_of.get(k) is None else str(keys_of[k]) for k in keys), *(_number(run.metrics.get(m)) for m in metrics)]
        for run, keys_of in zip(runs, flat, strict=True)
    ]  # fmt: skip
    return Shown(["run", *keys, *metrics], rows)


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def spread(values: Sequence[float]) -> str:
    """`mean (lowest to highest)`; a dash where there is nothing."""
    if not values:
        return "–"
    mean = sum(values) / len(values)
    return f"{mean:.3g}" if len(values) == 1 else f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})"


def ratio_words(found: Ratio | None) -> str:
    """`ratio (lowest to highest; 95 %: low to high)`."""
    if found is None:
        return "–"
    ranged = found.lowest != found.highest
    words = [f"{found.lowest:.3g} to {found.highest:.3g}"] if ranged else []
    words += [f"95 %: {found.interval[0]:.3g} to {found.interval[1]:.3g}"] if found.interval is not None else []
    return f"{found.of_means:.3g}" + (f" ({'; '.join(words)})" if words else "")
