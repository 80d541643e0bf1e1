"""The first figure of Elhage et al.: two, four and five features in two dimensions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_small_setting_reproduces_the_paper(run_crux: Callable[..., int], tmp_path: Path) -> None:
    given = ("experiment=toy/intro_polygon", "trainer.progress=false", "tracking=none", f"output_dir={tmp_path}")
    assert run_crux(*given) == 0
    (run,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["final/checks"] == 3
    assert metrics["final/checks_failed"] == 0
    assert (run / "figures" / "polygons.png").stat().st_size > 10_000
