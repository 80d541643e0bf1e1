"""Run the cases of public bug reports on crux, as their reporters would, and print a table of commands and outcomes.

    python -m tests.campaigns.cases                # all cases, about ten minutes on two cores
    python -m tests.campaigns.cases --case 6       # one case

The cases are numbered as in the review that collected them. Those marked "not offered" check that crux refuses clearly.
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path

from tests.campaigns.forks import import_everything
from tests.campaigns.outcomes import Outcomes, run_campaign
from tests.campaigns.reported import run_cases, sae_cases, text_cases
from tests.campaigns.reported.case import CASES, Observation, Workplace

__all__ = ["campaign", "run_cases", "sae_cases", "text_cases"]


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the first `cases` cases, or only one; the seed has no effect, since the inputs are fixed."""
    del seed
    import_everything()
    for number in sorted(CASES)[:cases] if only is None else [only]:
        case = CASES[number]
        with tempfile.TemporaryDirectory(prefix=f"case{number}_") as folder:
            os.environ["CRUX_CACHE"] = (
                f"{folder}/cache"  # tokens of an earlier version of crux would hide what this one reads
            )
            work = Workplace(Path(folder))
            try:
                observation = case.observe(work)
            except Exception as error:
                traceback.print_exc()
                observation = Observation(False, f"{type(error).__name__}: {error}")
        commands = "<br>".join(f"`{command}`" for command in work.commands)
        verdict = "correct" if observation.correct else "WRONG"
        observed = " ".join(observation.observed.split()).replace("|", "/").replace(f"{folder}/", "")
        print(f"| {number} | {case.title} | {commands} | {case.correct} | {observed} | {verdict} |", flush=True)
        if observation.correct:
            outcomes.held("correct")
        else:
            outcomes.fell_short("wrong", case=number, what=observed)


if __name__ == "__main__":
    print(
        "| case | reported | commands | correct outcome | observed | verdict |\n|---|---|---|---|---|---|",
        file=sys.stdout,
    )
    run_campaign(campaign, name="reported cases", cases=len(CASES))
