"""D* and feature dimensionality against sparsity: measures of the clustering at fractions, and the run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.toy.experiments.geometry import ALL_FRACTIONS, plateau_width, share_near, smooth_share_near

SMALL = ("experiment=toy/geometry", "trainer.progress=false", "tracking=none")


def test_shares_equal_hand_computed_values() -> None:
    D = torch.tensor([0.5, 0.519, 0.53, 0.7])
    assert share_near(D, [0.5, 2 / 3]) == 0.5
    # Each D is spread over D ± 0.1. The band 0.48–0.52 is a fifth of 0.4–0.6, 0.419–0.619 and 0.43–0.63; 0.6–0.8 does not contain it.
    assert smooth_share_near(D, [0.5]) == pytest.approx(3 * 0.2 / 4)
    assert share_near(D[:0], [0.5]) == smooth_share_near(D[:0], [0.5]) == 0


def test_bands_that_overlap_count_once_and_end_at_one() -> None:
    # The bands 0.38–0.42 and 0.355–0.395 together cover 0.355–0.42 of 0.28–0.48.
    assert smooth_share_near(torch.tensor([0.38]), [2 / 5, 3 / 8]) == pytest.approx(0.065 / 0.2, rel=1e-4)
    # Nothing is above 1: the band covers 0.98–1 of 0.85–1.
    assert smooth_share_near(torch.tensor([0.95]), [1.0]) == pytest.approx(0.02 / 0.15, rel=1e-4)


def test_uniform_dimensionalities_have_the_share_of_a_smooth_density() -> None:
    D = torch.linspace(0.2, 0.9, 7001)
    assert share_near(D, ALL_FRACTIONS) == pytest.approx(smooth_share_near(D, ALL_FRACTIONS), rel=0.05)


def test_plateau_is_the_longest_run_of_densities() -> None:
    densities = [1.0, 0.5, 0.4, 0.25, 0.2, 0.1, 0.05]
    d_star = torch.tensor([1.0, 0.51, 0.49, 0.48, 0.4, 0.5, 0.3])
    assert plateau_width(densities, d_star) == pytest.approx(2)  # from density 0.25 to 0.5
    assert plateau_width(densities[::-1], d_star.flip(0)) == pytest.approx(2)
    assert plateau_width([1.0, 0.5], torch.tensor([1.0, 0.5])) == 1  # a single density
    assert plateau_width([1.0, 0.5], torch.tensor([1.0, 0.6])) == 0  # none


def test_a_short_run_in_tiles_has_all_densities(run_crux: Callable[..., int], tmp_path: Path) -> None:
    short = ("trainer.max_steps=20", "trainer.batch=32", "toy.held_out=1024", "trainer.log_every=10", "toy.tile=9")
    assert run_crux(*SMALL, *short, "toy.densities=[1.0,0.5,0.1]", "toy.seeds=4", f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert len(list((run / "programs").iterdir())) == 2  # 12 streams in tiles of at most 9
    arrays = load_file(run / "arrays.safetensors")
    assert arrays["dimensionality"].shape == (12, 120)
    assert (arrays["dimensionality"].sum(-1) <= 10 + 1e-4).all()
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"final/at_fractions", "final/at_fractions_if_smooth", "final/at/digon"} <= metrics.keys()
    assert (run / "figures" / "dimensionality.png").stat().st_size > 10_000


@pytest.mark.slow
def test_small_setting_reproduces_the_paper(run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux(*SMALL, f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (
        json.loads((run / "metrics.json").read_text())["final/checks_failed"] <= 1
    )  # the optimum that a restart reaches depends on rounding, and so on the machine
