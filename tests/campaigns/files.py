"""Damaged SAEs, models and tokenizers: each is rejected in one line that names it, or loaded with the function that its files describe.

Of 13 cases in a row, ten are SAEs, two are models and one is a tokenizer. An audit hook watches that no file runs code. The cases run
in forks, some hundred in each, so that a case that ends the process, hangs or needs much memory is found too.
"""

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.utils import logging

from tests.campaigns.audit import recording
from tests.campaigns.files_as_described import compare_model, compare_sae, compare_tokenizer
from tests.campaigns.mutations import CANARY, damage_folder
from tests.campaigns.outcomes import Outcomes, run_campaign

CASES = 6_500
"""5,000 SAEs, 1,000 models and 500 tokenizers."""
BATCH = 130
"""Cases per fork."""
SECONDS = 20
"""Longest time that a single case may take."""
GIGABYTES = 1.5
"""Memory that a fork may need in addition to what it had at its start."""


class Kind(NamedTuple):
    """One kind of folder."""

    name: str
    load_and_compare: Callable[[Path, random.Random], str]
    """Load a folder; return how its function was compared. Raises UserError if the folder is rejected, AssertionError if what was
    loaded is wrong."""
    damages: Mapping[str, tuple[str, ...]]
    """File endings, and kinds of damage."""


_JSON = ("json",) * 8 + ("bytes", "replace")
_TENSORS = ("tensors",) * 8 + ("header",) * 3 + ("bytes", "replace")
SAE = Kind("SAE", compare_sae, {".json": _JSON, ".safetensors": _TENSORS})
MODEL = Kind("model", compare_model, {".json": _JSON, ".safetensors": _TENSORS})
TOKENIZER = Kind("tokenizer", compare_tokenizer, {".json": _JSON})


def kind_of(case: int) -> Kind:
    return [*[SAE] * 10, MODEL, MODEL, TOKENIZER][case % 13]


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the cases; `only` is the number of the only case to run."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    numbers = [only] if only is not None else list(range(cases))
    with tempfile.TemporaryDirectory(prefix="crux-files-") as place:
        intact = write_intact(Path(place))
        while numbers:
            numbers = _run_batch(outcomes, numbers, seed=seed, place=Path(place), intact=intact)


def write_intact(place: Path) -> dict[str, list[Path]]:
    """Write the intact folders of each kind, and check that they load."""
    from tests.campaigns.intact_files import write_models, write_saes, write_tokenizers

    intact = {
        SAE.name: write_saes(place / "saes"),
        MODEL.name: write_models(place / "models"),
        TOKENIZER.name: write_tokenizers(place / "tokenizers"),
    }
    for kind in (SAE, MODEL, TOKENIZER):
        for folder in intact[kind.name]:
            kind.load_and_compare(folder, random.Random(0))
    return intact


def _run_batch(
    outcomes: Outcomes, numbers: list[int], *, seed: int, place: Path, intact: Mapping[str, list[Path]]
) -> list[int]:
    """Run the first cases in a fork, and return those that are left; a case that ended the fork has fallen short."""
    batch, results = numbers[:BATCH], place / "results.jsonl"
    results.write_text("")
    pid = os.fork()
    if pid == 0:
        try:
            with results.open("a") as file:
                for case in batch:
                    print(json.dumps(_run_case(case, seed=seed, place=place, intact=intact)), file=file, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    finished, changed, status = 0, time.monotonic(), None
    while status is None:
        ended, code = os.waitpid(pid, os.WNOHANG)
        now_finished = results.read_text().count("\n")
        if now_finished > finished:
            finished, changed = now_finished, time.monotonic()
        if ended:
            status = os.waitstatus_to_exitcode(code)
        elif time.monotonic() - changed > SECONDS:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            status = -9
        else:
            time.sleep(0.05)
    lines = results.read_text().splitlines()
    for case, line in zip(batch, lines, strict=False):
        outcome, wrong, what = json.loads(line)
        if wrong:
            outcomes.fell_short(outcome, case=case, what=what)
        else:
            outcomes.held(outcome)
    if len(lines) == len(batch):
        return numbers[len(batch) :]
    kind = kind_of(batch[len(lines)]).name
    outcomes.fell_short(f"{kind}: the process ended or hung", case=batch[len(lines)], what=f"exit code {status}")
    return numbers[len(lines) + 1 :]


def _run_case(case: int, *, seed: int, place: Path, intact: Mapping[str, list[Path]]) -> tuple[str, bool, str]:
    """Run one case; return its outcome, whether it is wrong, and what was done."""
    rng = random.Random(f"{seed} {case}")
    torch.manual_seed(case)
    kind = kind_of(case)
    source = rng.choice(intact[kind.name])
    folder = place / f"case-{case}"
    done = damage_folder(source, folder, rng, kinds=kind.damages, at_most=3)
    what = f"{source.name}: {'; '.join(done)}"[:300]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    try:
        with recording() as events, _captured_stderr() as printed, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, wrong, reason = _load(kind, folder, rng)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    if events or CANARY in os.environ:
        return f"{kind.name}: code was run", True, f"{what}: {events}"
    if grown > GIGABYTES:
        return f"{kind.name}: memory", True, f"{what}: {grown:.1f} GB more"
    if time.monotonic() - started > SECONDS / 2:
        return f"{kind.name}: slow", True, f"{what}: {time.monotonic() - started:.0f} s"
    if "panicked" in printed[0] or "Traceback" in printed[0]:
        return f"{kind.name}: printed a traceback", True, f"{what}: {printed[0][:200]!r}"
    return f"{kind.name}: {outcome}", wrong, f"{what}: {reason}"


def _load(kind: Kind, folder: Path, rng: random.Random) -> tuple[str, bool, str]:
    from crux.config.errors import UserError

    try:
        return f"loaded, {kind.load_and_compare(folder, rng)}", False, ""
    except UserError as error:
        message = str(error)
        if "\n" in message or str(folder) not in message or len(message) > 1000:
            return "message that is not one line with the file's name", True, repr(message[:300])
        return "rejected in one line", False, message
    except AssertionError as error:
        return "wrong", True, " ".join(str(error).split())[:300]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", True, f"{type(error).__name__}: {str(error)[:150]!r} at {frame.filename}:{frame.lineno}"


class _captured_stderr:
    """Within the block, standard error goes to a file, whose text is then the first item of the list that the block gets."""

    def __enter__(self) -> list[str]:
        sys.stderr.flush()
        self.stderr, self.file, self.text = os.dup(2), tempfile.TemporaryFile(), [""]
        os.dup2(self.file.fileno(), 2)
        return self.text

    def __exit__(self, *_: object) -> None:
        sys.stderr.flush()
        os.dup2(self.stderr, 2)
        os.close(self.stderr)
        self.file.seek(0)
        self.text[0] = self.file.read().decode("utf-8", "replace")
        self.file.close()


if __name__ == "__main__":
    run_campaign(campaign, name="files", cases=CASES)
