"""Phase diagrams of one extra feature: classes and distances by hand, a shortened run, and the small setting compared with theory."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.runs.intermediate import compute_once
from crux.runs.run_folder import RunFolder
from crux.toy.exact.phase_theory import Boundaries
from crux.toy.experiments.phase_diagram import classify_extra_feature, pixels_from_boundary

SHORT = ("experiment=toy/phase_diagram", "trainer.max_steps=60", "trainer.batch=64", "trainer.progress=false", "tracking=none",
         "toy.densities=[0.3,0.1]", "toy.ratios=[0.1,0.316,1.0,3.16,10.0]", "toy.seeds=4")  # fmt: skip


def test_classes_of_the_last_feature() -> None:
    W = torch.tensor(
        [
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # not represented
            [[1.0, 0.0, 0.0], [0.0, 1.0, -0.9]],  # antipodal with the second
            [[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]],  # the other two share a dimension
            [[1.0, 0.0, 0.05], [0.0, 0.01, 1.0]],  # overlaps only with a feature that is not represented
        ]
    )
    assert classify_extra_feature(W).tolist() == [0, 1, 2, 2]


def test_distance_from_the_boundary_is_in_pixels() -> None:
    """Superposition is from 1 to 4, pixels at 1/4 … 16 in steps of 2; the distance is to the nearest ratio with the pixel's class."""
    edges = Boundaries(torch.tensor([1.0]), torch.tensor([4.0]))
    ratios = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    right = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    torch.testing.assert_close(pixels_from_boundary(right, edges, ratios), torch.zeros(1, 7, dtype=torch.float64))
    wrong = torch.tensor([[1, 2, 0, 0, 2, 1, 0]])
    expected = torch.tensor([[2.0, 3.0, 0.0, 1.0, 0.0, 1.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(pixels_from_boundary(wrong, edges, ratios), expected)


@pytest.mark.slow
def test_a_shortened_run_in_tiles(run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux(*SHORT, "toy.sizes=[[2,1,1]]", "toy.tile=3", f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert len(list((run / "programs").iterdir())) == 3  # 2 densities × 4 seeds
    arrays = load_file(run / "arrays.safetensors")
    assert arrays["2_1/classes"].tolist() == [[0, 1, 1, 1, 2], [1, 1, 1, 1, 1]]  # 0.205 … 4.89, and 0.0487 … 20.5
    assert arrays["2_1/loss"].shape == (2, 5)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["final/checks"] == 1
    assert metrics["final/checks_failed"] == 0  # a short training suffices, because the instances are polished
    assert metrics["final/local_optima/2_1"] > 1
    for name in ("phases", "norm_and_superposition"):
        assert (run / "figures" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("toy.sizes=[[4,2,1]]", "there is a theory for [2, 1, 1] and [3, 2, 1], not for 4 → 2"),
        ("toy.sizes=[[4,2]]", "[4, 2] must be [n_features, n_hidden, n_sets]"),
        ("toy.sizes=null", "toy.sizes=null: must have a value"),
        ("toy.n_features=3", "toy.n_features: this job has no such key"),
        ("toy.importance=0.5", "must be 1 in a phase diagram"),
        ("toy.ratios=[1.0]", "toy.ratios=[1.0]: must be a list of at least 2"),
    ],
)
def test_unsuitable_options_are_rejected(given: str, says: str, error_message: Callable[..., str]) -> None:
    assert says in error_message(*SHORT[:-1], given)


@pytest.mark.slow
def test_interrupted_polishing_continues_with_the_next_piece(
    run_crux: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("crux.toy.exact.polish.MAX_BATCH", 8)  # of 12 instances: two pieces
    edges = Boundaries(torch.tensor([0.5], dtype=torch.float64), torch.tensor([5.0], dtype=torch.float64))
    monkeypatch.setattr("crux.toy.experiments.phase_diagram.exact_boundaries", lambda densities, *, n_hidden: edges)
    given = (*SHORT, "toy.sizes=[[2,1,1]]", "toy.densities=[0.1]", "toy.ratios=[0.1,1.0,10.0]")
    assert run_crux(*given, f"output_dir={tmp_path / 'whole'}") == 0
    computed: list[str] = []

    def interrupted(folder: RunFolder, name: str, compute: Callable[[], Mapping[str, torch.Tensor]]):
        if computed:
            raise KeyboardInterrupt
        computed.append(name)
        return compute_once(folder, name, compute)

    with monkeypatch.context() as patch:
        patch.setattr("crux.toy.experiments.phase_diagram.compute_once", interrupted)
        assert run_crux(*given, f"output_dir={tmp_path / 'parts'}") == 130
    (run,) = (tmp_path / "parts" / "runs").iterdir()
    assert [path.stem for path in (run / "pieces").iterdir()] == computed == ["2_1_first_0"]
    assert run_crux(*given, f"output_dir={tmp_path / 'parts'}", "resume=true") == 0
    assert not (run / "pieces").exists()
    (whole,) = (tmp_path / "whole" / "runs").iterdir()
    for name in ("metrics.json", "history.jsonl"):
        assert (run / name).read_text() == (whole / name).read_text()
    a, b = (load_file(folder / "arrays.safetensors") for folder in (whole, run))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_small_setting_has_the_exact_boundaries(run_crux: Callable[..., int], tmp_path: Path) -> None:
    given = ("experiment=toy/phase_diagram", "trainer.progress=false", "tracking=none", f"output_dir={tmp_path}")
    assert run_crux(*given) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "metrics.json").read_text())["final/checks_failed"] == 0
