"""Count the outcomes of a campaign's cases and print them, with the command that repeats each case that fell short."""

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple


class Shortfall(NamedTuple):
    """A case whose outcome was wrong."""

    case: int
    """Number of the case; `--case <number>` with the same seed repeats it."""
    what: str
    """What was done and what was observed, in one line."""


class Outcomes:
    """The outcomes of a campaign: how many cases ended in which way, and which of them fell short."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.shortfalls: list[Shortfall] = []

    def held(self, outcome: str) -> None:
        """Count a case with a correct outcome."""
        self.counts[outcome] += 1

    def fell_short(self, outcome: str, *, case: int, what: str) -> None:
        """Count a case with a wrong outcome, and print it at once."""
        self.counts[f"WRONG: {outcome}"] += 1
        self.shortfalls.append(Shortfall(case, f"{outcome}: {what}"))
        print(f"{self.name} case {case}: {outcome}: {what}", file=sys.stderr, flush=True)

    def table(self) -> str:
        """Return the counts, one line per outcome, the wrong ones last."""
        rows = sorted(self.counts.items(), key=lambda row: (row[0].startswith("WRONG"), -row[1], row[0]))
        total = sum(self.counts.values())
        lines = [f"{self.name}: {total:,} cases, {len(self.shortfalls):,} fell short"]
        return "\n".join(lines + [f"  {count:>6,}  {outcome}" for outcome, count in rows])


def run_campaign(campaign: Callable[[Outcomes, int, int, int | None], None], *, name: str, cases: int) -> None:
    """Run a campaign from the command line, print its table, and exit with 1 if a case fell short.

    SIGTERM ends it as Ctrl-C does, so that it stops its servers and jobs and removes its folders.

    Args:
        campaign: called with the outcomes to fill, the number of cases, the seed, and the only case to run (None: all).
        name: the campaign's name in its output.
        cases: number of cases of the long form, the default of `--cases`.
    """
    parser = argparse.ArgumentParser(description=sys.modules[campaign.__module__].__doc__)
    parser.add_argument("--cases", type=int, default=cases, help="number of cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default: %(default)s)")
    parser.add_argument("--case", type=int, default=None, help="run only the case with this number")
    arguments = parser.parse_args()
    outcomes = Outcomes(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    campaign(outcomes, arguments.cases, arguments.seed, arguments.case)
    print(outcomes.table())
    sys.exit(1 if outcomes.shortfalls else 0)
