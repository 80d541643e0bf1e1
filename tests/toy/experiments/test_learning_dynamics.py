"""Learning in jumps, and the shapes during training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.toy.experiments.learning_dynamics import (
    choose_seed,
    count_shapes,
    mean_cosine_between_sets,
    mean_cosine_within_sets,
)

QUIET = ("trainer.progress=false", "tracking=none")
SHORT = ("trainer.max_steps=60", "trainer.batch=64", "toy.snapshots=20", "toy.held_out=1024", "toy.seeds=2")


def test_mean_cosines_of_an_octahedron_and_of_separated_sets() -> None:
    octahedron = torch.cat([torch.eye(3), -2 * torch.eye(3)], dim=1)
    assert mean_cosine_within_sets(octahedron, n_sets=2) == pytest.approx(0)
    assert mean_cosine_between_sets(octahedron, n_sets=2) == pytest.approx(-1 / 3)
    assert count_shapes(octahedron / 2) == {"digon": 3}
    separated = torch.tensor([[1.0, 2.0, 3.0, -1.0, -1.0, -4.0], [0.0] * 6, [0.0] * 6])
    assert mean_cosine_within_sets(separated, n_sets=2) == pytest.approx(1)
    assert mean_cosine_between_sets(separated, n_sets=2) == pytest.approx(-1)


def test_chosen_seed_has_a_good_loss_and_many_drops() -> None:
    loss = torch.tensor([1.004, 1.0, 1.003, 1.01])
    assert (
        choose_seed(loss, [3, 2, 3, 5]) == 2
    )  # seed 3 is more than 0.5 % above the best; seeds 0 and 2 tie, and 2 is better
    assert choose_seed(loss, [2, 2, 2, 5]) == 1


@pytest.mark.parametrize(
    ("experiment", "n_features", "figures"),
    [("learning_dynamics", 66, {"dynamics"}), ("learning_dynamics_correlated", 6, {"dynamics", "stages"})],
)
def test_a_short_run_keeps_every_snapshot(
    experiment: str, n_features: int, figures: set[str], run_crux: Callable[..., int], tmp_path: Path
) -> None:
    assert run_crux(f"experiment=toy/{experiment}", *QUIET, *SHORT, f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    arrays = load_file(run / "arrays.safetensors")
    assert arrays["steps"].tolist() == list(range(0, 61, 3))  # 20 snapshots and the start
    assert arrays["dimensionality"].shape == (21, n_features)
    assert arrays["loss"].shape == (21, 2)
    assert arrays["loss"][-1].mean() < arrays["loss"][0].mean()
    assert {path.stem for path in (run / "figures").glob("*.png")} == figures


def test_initial_weights_are_scaled(run_crux: Callable[..., int], tmp_path: Path) -> None:
    first = []
    for scale in ("1.0", "0.5"):
        given = ("experiment=toy/learning_dynamics_correlated", *QUIET, *SHORT, f"toy.init_scale={scale}")
        assert run_crux(*given, f"output_dir={tmp_path / scale}") == 0
        (run,) = (tmp_path / scale / "runs").iterdir()
        first.append(load_file(run / "programs" / "model" / "snapshots" / "0.safetensors")["W"])
    torch.testing.assert_close(first[1], first[0] / 2, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("toy.densities=[0.5,0.3]", "at one density"),
        ("toy.snapshots=0", "needs 20 or more"),
        ("toy.init_scale=0.0", "toy.init_scale=0: must be more than 0"),
    ],
)
def test_unsuitable_options_are_rejected(given: str, says: str, error_message: Callable[..., str]) -> None:
    assert says in error_message("experiment=toy/learning_dynamics", *QUIET, given)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["learning_dynamics", "learning_dynamics_correlated"])
def test_small_setting_reproduces_the_paper(experiment: str, run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux(f"experiment=toy/{experiment}", *QUIET, f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (
        json.loads((run / "metrics.json").read_text())["final/checks_failed"] <= 1
    )  # the optimum that a restart reaches depends on rounding, and so on the machine
