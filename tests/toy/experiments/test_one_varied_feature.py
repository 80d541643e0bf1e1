"""Local optima of five features, one of them varied: names and crossings by hand, a shortened run, and the small setting."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crux.toy.experiments.one_varied_feature import (
    DIGONS,
    PENTAGON,
    Optimum,
    distinct_optima,
    find_crossing,
    lowest_losses,
    name_geometry,
)
from crux.toy.geometry.polytopes import polygon

TWO_DIGONS = torch.tensor([[1.0, -1, 0, 0, 0], [0, 0, 1, -1, 0]])


def test_geometries_are_named() -> None:
    assert name_geometry(polygon(5).float()) == PENTAGON
    stretched = polygon(5).float() * torch.tensor([[1.3], [0.8]])
    assert name_geometry(stretched) == PENTAGON
    assert name_geometry(TWO_DIGONS) == DIGONS
    assert name_geometry(TWO_DIGONS.flip(1)) == "two digons, another dropped"
    assert name_geometry(torch.tensor([[1.0, -1, 0, 0, 0], [0, 0, 0, 0, 1]])) == "dedicated + digon"


def test_restarts_with_equal_results_are_one_optimum() -> None:
    W = torch.stack([TWO_DIGONS, polygon(5).float(), TWO_DIGONS])
    optima = distinct_optima(torch.tensor([0.3, 0.2, 0.300001]), W)  # the losses of both digons agree to 1e-4
    assert [(o.name, o.n) for o in optima] == [(PENTAGON, 1), (DIGONS, 2)]
    assert optima[1].loss == pytest.approx(0.3)


def test_crossing_is_linear_between_the_ratios_that_have_both() -> None:
    first, second = {0.1: 0.5, 0.2: 2.0, 0.4: 3.0, 0.8: 5.0}, {0.2: 1.0, 0.4: 4.0, 0.8: 9.0}
    at, low, high = find_crossing(first, second)
    assert (low, high) == (0.2, 0.4)
    assert at == pytest.approx(0.3)
    assert math.isnan(find_crossing(first, {0.8: 9.0})[0])


def test_lowest_losses_are_those_of_the_named_geometry() -> None:
    optima = {
        1.0: [Optimum("a", 0.2, TWO_DIGONS, 1), Optimum("a", 0.1, TWO_DIGONS, 1)],
        2.0: [Optimum("b", 0.3, TWO_DIGONS, 1)],
    }
    assert lowest_losses(optima, "a") == {1.0: 0.1}


@pytest.mark.slow
def test_a_shortened_run_finds_the_crossing(run_crux: Callable[..., int], tmp_path: Path) -> None:
    given = ("experiment=toy/one_varied_feature", "trainer.max_steps=150", "trainer.progress=false", "tracking=none",
             "toy.ratios=[0.25,0.3]", "toy.seeds=12", f"output_dir={tmp_path}")  # fmt: skip
    assert run_crux(*given) == 0
    (run,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["final/checks_failed"] == 0
    assert metrics["final/crossing"] == pytest.approx(3.72, abs=0.02)
    assert (run / "figures" / "crossing.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "given", ["toy.n_features=4", "toy.densities=[0.1,0.2]", "toy.ratios=[30.0]", "toy.ratios=null"]
)
def test_unsuitable_options_are_rejected(given: str, run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux("experiment=toy/one_varied_feature", "tracking=none", given, f"output_dir={tmp_path}") == 2


@pytest.mark.slow
def test_the_small_setting_finds_the_exact_crossing(run_crux: Callable[..., int], tmp_path: Path) -> None:
    given = ("experiment=toy/one_varied_feature", "trainer.progress=false", "tracking=none", f"output_dir={tmp_path}")
    assert run_crux(*given) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "metrics.json").read_text())["final/checks_failed"] == 0
