"""The packaged model: its card's numbers, recomputed from the files, and the size of the files."""

import re
from pathlib import Path

import pytest

from crux.assets import __file__ as assets_file
from crux.pretraining.job import evaluate_held_out
from crux.text.packaged import SOURCES

ASSETS = Path(assets_file).parent
CARD = (ASSETS / "tiny" / "README.md").read_text("utf-8")
CONTEXT, STRIDE = 256, 128


def read_card(source: str) -> float:
    """Return the held-out bits per byte of a source in the card's table."""
    line = re.search(rf"^\| `{source}` \|.*\| ([\d.]+) \|$", CARD, re.MULTILINE)
    assert line is not None, f"the card has no line for {source}"
    return float(line[1])


@pytest.mark.parametrize(
    "source", [pytest.param(name, marks=pytest.mark.slow) if name != "moby-dick" else name for name in SOURCES]
)
def test_held_out_bits_per_byte_are_those_of_the_card(source: str) -> None:
    found = evaluate_held_out(ASSETS / "tiny", (source,), context=CONTEXT, stride=STRIDE)
    assert found[f"final/bits_per_byte/{source}"] == pytest.approx(read_card(source), abs=1e-3)
    assert f"context {CONTEXT}, stride {STRIDE}" in CARD


def test_the_speeches_are_predicted_well_enough() -> None:
    assert read_card("sotu") <= 1.65


def test_weights_tokenizer_and_text_stay_under_16_mb() -> None:
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 16e6
