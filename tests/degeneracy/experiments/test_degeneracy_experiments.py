"""Tests of the experiments on spectra and synchronised neurons, of the training that they can use, and of rejected options."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crux.degeneracy.networks.addition_folder import RUN_SUBFOLDER

SMALL = ("interaction_basis.addition.p=7", "interaction_basis.addition.d_mlp=32", "trainer.progress=false")
SPECTRA, SYNCHRONISED = "experiment=degeneracy/spectra", "experiment=degeneracy/synchronised"
TRAINING = "experiment=interaction_basis/modular_addition_training"
Command = Callable[..., int]


def run(run_crux: Command, outputs: Path, *given: str) -> tuple[Path, dict[str, float]]:
    """Run a command and return its folder and metrics."""
    assert run_crux(*given, "tracking=none", f"output_dir={outputs}") == 0
    (folder,) = (outputs / "runs").iterdir()
    assert (folder / "DONE").exists()
    return folder, json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def addition(run_crux: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a small trained modular-addition network."""
    more = ("trainer.max_steps=300", "interaction_basis.addition.train_share=0.9")
    folder, metrics = run(run_crux, tmp_path_factory.mktemp("addition"), TRAINING, *SMALL, *more)
    assert metrics["final/train_accuracy"] == 1
    assert (folder / "figures" / "grokking.png").exists()
    return folder


def test_budget_of_a_perceptron_bounds_the_rank_of_its_hessian(run_crux: Command, tmp_path: Path) -> None:
    folder, found = run(
        run_crux, tmp_path, "experiment=degeneracy/spectra", "degeneracy.network=mlp", "degeneracy.hidden=[8,6]",
        "degeneracy.steps=60",
    )  # fmt: skip
    assert found["final/checks_failed"] == 0
    assert (
        found["final/parameters"] == 65 * 8 + 9 * 6 + 7 * 10
    )  # 64 pixels, hidden layers of 8 and 6, 10 digits; with biases
    assert 0 < found["final/hessian_rank"] <= found["final/bound"] < found["final/parameters"]
    assert found["final/rank/G/input"] <= 61  # three of the 64 pixels are empty in every digit
    spectra = load_file(folder / "arrays.safetensors")
    assert len(spectra["hessian"]) == found["final/parameters"]
    report = (folder / "report.md").read_text()
    assert f"2λ_B ≤ {found['final/bound']:.0f}." in report
    assert "| pre0 | 65 · 8 |" in report


@pytest.mark.slow
def test_spectra_of_the_packaged_model_show_that_the_mean_is_not_read(run_crux: Command, tmp_path: Path) -> None:
    hooks = "blocks.5.hook_resid_pre,blocks.7.attn.hook_z,blocks.7.hook_attn_out"
    folder, found = run(
        run_crux, tmp_path, "experiment=degeneracy/spectra", "degeneracy.sequences=16", "model.context=64",
        f"hook_points=[{hooks}]",
    )  # fmt: skip
    assert found["final/checks"] == 1
    assert found["final/checks_failed"] == 0
    # K lacks the direction of the residual stream's mean, one of 128
    assert found["final/rank/K/blocks.5.hook_resid_pre"] == 127
    assert found["final/rank/K/blocks.7.hook_attn_out"] == 127
    assert found["final/rank/G/blocks.7.attn.hook_z"] == 128
    assert "| blocks.7.attn.hook_z | blocks.7.hook_attn_out | 16384 | 128 |" in (folder / "report.md").read_text()


def test_synchronised_neurons_of_a_perceptron(run_crux: Command, tmp_path: Path) -> None:
    folder, found = run(
        run_crux, tmp_path, "experiment=degeneracy/synchronised", "degeneracy.hidden=[24]", "degeneracy.steps=60",
        "degeneracy.thresholds=[0.001,0.5,0.05]",
    )  # fmt: skip
    assert found["final/checks_failed"] == 0
    assert found["final/neurons"] == 24
    gates = [found[f"final/gates/{t}"] for t in ("0.001", "0.05", "0.5")]
    assert 1 >= gates[0] >= gates[1] >= gates[2] > 0
    assert gates[2] < 0.8
    assert found["final/right"] > 0.8
    error = load_file(folder / "arrays.safetensors")["error/post0"]
    assert error.shape == (24, 24)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["threshold"] for row in history] == [0.001, 0.05, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("subfolder", [False, True])
def test_both_experiments_accept_a_modular_addition_network(
    run_crux: Command, addition: Path, tmp_path: Path, subfolder: bool
) -> None:
    """The network is given by its run folder or by its own subfolder there; each experiment tests one of the two."""
    path = addition / RUN_SUBFOLDER if subfolder else addition
    if subfolder:
        _, found = run(run_crux, tmp_path, "experiment=degeneracy/synchronised", f"model.path={path}")
        assert found["final/neurons"] == 32
    else:
        _, found = run(run_crux, tmp_path, "experiment=degeneracy/spectra", f"model.path={path}")
        assert found["final/parameters"] == 129 * 32 + 33 * 128  # d_model = 128 and d_mlp = 32, with biases
        assert found["final/bound"] < found["final/parameters"]
    assert found["final/checks_failed"] == 0


@pytest.mark.slow
def test_killed_training_is_resumed(run_crux: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history and the network of the resumed run equal those of an uninterrupted one."""
    given = [TRAINING, *SMALL, "trainer.max_steps=60", "trainer.log_every=10", "trainer.checkpoint_every=20"]
    whole, _ = run(run_crux, tmp_path / "whole", *given)
    from crux.degeneracy.networks import modular_addition_module as modular_addition

    calls = iter(range(100))
    original = modular_addition.evaluate_addition

    def kill_at_fifth_call(*args: Any) -> Any:  # in step 50, after the checkpoint of step 40
        if next(calls) == 4:
            raise RuntimeError("killed")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(modular_addition, "evaluate_addition", kill_at_fifth_call)
        with pytest.raises(RuntimeError, match="killed"):
            run(run_crux, tmp_path / "cut", *given)
    resumed, _ = run(run_crux, tmp_path / "cut", *given, "resume=true")
    assert (resumed / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    a, b = (load_file(folder / RUN_SUBFOLDER / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (resumed / RUN_SUBFOLDER / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "module", "killed_in"),
    [
        ((SPECTRA, "degeneracy.network=mlp", "degeneracy.hidden=[6,5]", "degeneracy.steps=20"), "spectra", "jacobian_gram"),
        ((SYNCHRONISED, "degeneracy.hidden=[12]", "degeneracy.steps=20"), "synchronised", "merge_gates"),
    ],
    ids=["spectra", "synchronised"],
)  # fmt: skip
def test_killed_measurements_are_resumed(
    run_crux: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    module: str,
    killed_in: str,
) -> None:
    """Measurements from before a run was killed are not repeated, and the numbers are the same."""
    experiment = import_module(f"crux.degeneracy.experiments.{module}")
    original, calls = getattr(experiment, killed_in), []

    def count_calls(*, kill_at: int) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls.append(None)
            if len(calls) == kill_at:
                raise RuntimeError("killed")
            return original(*args, **more)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(experiment, killed_in, count_calls(kill_at=3))
        with pytest.raises(RuntimeError, match="killed"):
            run(run_crux, tmp_path / "cut", *given)
    calls.clear()
    monkeypatch.setattr(experiment, killed_in, count_calls(kill_at=-1))
    resumed, found = run(run_crux, tmp_path / "cut", *given, "resume=true")
    calls_after_resuming = len(calls)
    whole, expected = run(run_crux, tmp_path / "whole", *given)
    calls_of_whole_run = len(calls) - calls_after_resuming
    assert calls_of_whole_run == calls_after_resuming + 2  # two calls were finished before the run was killed
    assert found == expected
    assert (resumed / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    a, b = (load_file(folder / "arrays.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


TINY = Path(__file__).parents[3] / "src" / "crux" / "assets" / "tiny"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((SPECTRA, "degeneracy.thresholds=[0.1,1.0]"), "degeneracy.thresholds=[0.1, 1.0]: must be numbers that are between 0 and 1"),
        ((SYNCHRONISED, "degeneracy.thresholds=[0.0]"), "degeneracy.thresholds=[0.0]: must be numbers that are between 0 and 1"),
        ((SPECTRA, "degeneracy.thresholds=[]"), "degeneracy.thresholds=[]: must be"),
        ((SPECTRA, "hook_points=[blocks.3.hook_resid_pre,blocks.2.hook_resid_pre]"), "2.hook_resid_pre does not come after blocks.3"),
        ((SPECTRA, "hook_points=[blocks.3.hook_resid_pre]"), "two or more are needed"),
        ((SPECTRA, "hook_points=[blocks.3.hook_resid_pre,blocks.9.hook_resid_pre]"), "the model has 8 layers"),
        ((SPECTRA, "hook_points=[blocks.3.hook_resid_pre,blocks.4.hook_resid_per]"), "no such hook point; nearest are"),
        ((SPECTRA, "degeneracy.network=mlp", "model.context=64"), "model.context has no meaning for degeneracy.network=mlp"),
        ((SPECTRA, "layer=3"), "layer: this job has no such key"),
        ((SYNCHRONISED, f"model.path={TINY}"), "only ReLU neurons can be synchronised"),
        ((SYNCHRONISED, "degeneracy.network=model"), "allowed keys of degeneracy: degeneracy.experiment"),
        ((SYNCHRONISED, "degeneracy.hidden=[]"), "degeneracy.hidden=[]: must be a list of at least one"),
        ((SYNCHRONISED, "degeneracy.steps=0"), "degeneracy.steps=0: must be 1 or more"),
        ((TRAINING, "interaction_basis.addition.train_share=1.0"), "addition.train_share=1: must be between 0 and 1"),
        ((TRAINING, "interaction_basis.addition.train_share=1e-5"), "must be a share of the 12769 pairs, between 0 and 1"),
        ((TRAINING, "interaction_basis.addition.n_heads=3"), "must be a multiple of the 3 heads"),
        ((TRAINING, "interaction_basis=mlp"), "interaction_basis: has no meaning for this experiment"),
        ((TRAINING, "interaction_basis.addition.p=0"), "interaction_basis.addition.p=0: must be 1 or more"),
        ((TRAINING, f"model.path={TINY}"), "model.path: this job has no section model; the main job has it"),
        (("experiment=interaction_basis/modular_addition", f"model.path={TINY}"), "no trained modular-addition network there"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)  # fmt: skip
def test_invalid_options_are_rejected(error_message: Callable[..., str], given: tuple[str, ...], said: str) -> None:
    assert said in error_message(*given)


@pytest.mark.slow
def test_network_with_broken_weights_is_rejected(
    error_message: Callable[..., str], addition: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text((addition / RUN_SUBFOLDER / "config.json").read_text())
    (folder / "model.safetensors").write_bytes(b"short")
    for experiment in (SPECTRA, SYNCHRONISED):
        assert "not a safetensors file, or a broken one" in error_message(experiment, f"model.path={folder}")
