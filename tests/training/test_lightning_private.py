"""What crux takes from the private parts of libraries: in one file each, and still there."""

import re
from pathlib import Path

import lightning as L

from crux.training.lightning_private import skip_sigterm_broadcast

SRC = Path(__file__).resolve().parents[2] / "src"
GUARDED = {"crux/training/lightning_private.py", "crux/subjects/shallow.py"}
PRIVATE = re.compile(
    r"""^\s*(?:from|import)\s+(?!__future__)\S*(?<=[\s.])_\w  # import a._b, from a._b import c
    | ^\s*from\s.*\simport\s.*\b_\w                          # from a import _b
    | \w\)?\._(?!replace\b|asdict\b|fields\b|exit\b|target_\b)[a-z]\w*  # a._b
    """,
    re.VERBOSE,
)
OWN = re.compile(r"\b(?:self|cls)\._")


def test_private_parts_of_libraries_are_used_in_the_guarded_files_alone() -> None:
    found = {
        f"{path.relative_to(SRC)}:{number}: {line.strip()}"
        for path in SRC.rglob("*.py")
        if str(path.relative_to(SRC)) not in GUARDED
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if PRIVATE.search(OWN.sub("", line))
    }
    assert not found, "use a public interface, or a file of its own with a test that says what broke"


def test_lightning_still_asks_about_sigterm_where_crux_stops_it() -> None:
    """`Trainer.fit` calls the function that `skip_sigterm_broadcast` replaces, if a run has several processes."""
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    loop = trainer.fit_loop.epoch_loop
    what_now = (
        f"Lightning {L.__version__} no longer broadcasts SIGTERM in _TrainingEpochLoop._broadcast_sigterm_tensor: look in "
        "lightning/pytorch/loops/training_epoch_loop.py whether anything still waits for the device before every batch of a "
        "run with several processes; if not, delete crux/training/lightning_private.py, otherwise replace that function"
    )
    assert "_broadcast_sigterm_tensor" in type(loop).advance.__code__.co_names, what_now
    before = loop._broadcast_sigterm_tensor
    skip_sigterm_broadcast(trainer)
    assert loop._broadcast_sigterm_tensor is not before
    assert loop._broadcast_sigterm_tensor() is None
