"""`sparsities=[…]` and `ks=[…]` on the command line: each SAE of the job has the same results as a separate run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from crux.sae.sweeps.finished_runs import read_finished_runs
from crux.sae.training.sae_module import SAEModule
from crux.training.checkpoints import checkpoint_step
from tests.support.infinite_penalty import make_large_penalties_infinite

Command = Callable[..., Path]


@pytest.fixture
def run(run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path) -> Command:
    """Return a function that runs a short job and returns its folder."""

    def run_job(*overrides: str, code: int = 0) -> Path:
        before = set((tmp_path / "runs").glob("*"))
        assert run_crux(*short_job, *overrides, f"output_dir={tmp_path}") == code
        (folder,) = set((tmp_path / "runs").glob("*")) - before
        return folder

    return run_job


def read_metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def read_history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text("utf-8").splitlines()]


def read_config(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text("utf-8"))


def list_files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def find_mlflow_runs(outputs: Path) -> dict[str, Any]:
    """Return the MLflow runs by name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("crux")
    assert experiment is not None
    return {r.info.run_name or "": r for r in client.search_runs([experiment.experiment_id])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "many", "one", "common"),
    [
        ("sparsity=3", "sparsities=[0.5,3]", "sparsity=3", ("loss=e2e_ds",)),
        ("k=16", "ks=[16,4]", "sae.k=16", ("loss=local", "sae=topk")),
    ],
)
def test_each_run_equals_one_that_was_trained_separately(
    name: str, many: str, one: str, common: tuple[str, ...], run: Command, tmp_path: Path
) -> None:
    job, separate = run(many, *common), run(one, *common, "tracking=none")
    assert {p.name for p in job.iterdir() if p.is_file()} == {"config.yaml", "DONE", "mlflow_run_id"}
    assert checkpoint_step(job / "checkpoints" / "last.ckpt") == 4  # the steps of short_job
    part = job / name
    assert list_files(part) == list_files(separate) - {"checkpoints/last.ckpt"} | {"mlflow_run_id"}
    differing = {k for k, v in read_config(part).items() if v != read_config(separate)[k]}
    assert differing == {"tracking"}
    found, expected = read_metrics(part), read_metrics(separate)
    assert found.pop("final/tokens_per_second") > 0
    assert expected.pop("final/tokens_per_second") > 0
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for row, expected_row in zip(read_history(part), read_history(separate), strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4, abs=1e-5)

    runs = find_mlflow_runs(tmp_path)
    assert len(runs) == 3  # the job and its two runs; `run_name` of the job lists both values with a comma
    parent = runs.pop(next(name for name in runs if "," in name))
    assert parent.info.status == "FINISHED"
    assert parent.info.run_id == (job / "mlflow_run_id").read_text().strip()
    assert not {"sparsity", "k"} & parent.data.params.keys()
    for child in runs.values():
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["n_latents"] == "2048"
        assert "final/ce_increase" in child.data.metrics
    child = next(r for r in runs.values() if r.info.run_id == (part / "mlflow_run_id").read_text().strip())
    key, value = ("sparsity", "3.0") if "sparsity" in name else ("k", "16")
    assert child.data.params[key] == value
    assert child.data.metrics["final/l0"] == pytest.approx(found["final/l0"])
    assert child.info.run_name in ("e2e_ds L6 λ=3", "topk local L6 k=16")


@pytest.mark.slow
def test_a_run_fails_and_the_others_are_finished(
    run: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large_penalties_infinite(monkeypatch)
    job = run("sparsities=[1,1e9,3]", "loss=local", "evaluation.latents=0", code=2)
    err = [line for line in capfd.readouterr().err.splitlines() if "given more than once" not in line]
    assert len(err) == 2
    assert err[0].startswith(
        "crux: sparsity=1000000000: the loss or its gradient stopped being a finite number at step 1 "
    )
    assert "at step 1 (sparsity=1000000000)" in err[1]
    assert not (job / "DONE").exists()
    assert {p.name for p in job.iterdir() if (p / "DONE").exists()} == {"sparsity=1", "sparsity=3"}
    bad = job / "sparsity=1000000000"
    assert "at step 1 (" in (bad / "FAILED").read_text()
    assert not (bad / "metrics.json").exists()
    assert read_history(bad) == []
    assert {name: r.info.status for name, r in find_mlflow_runs(tmp_path).items()} == {
        "local L6 λ=1": "FINISHED", "local L6 λ=3": "FINISHED", "local L6 λ=1e+09": "FAILED", "local L6 λ=1,1e+09,3": "FAILED",
    }  # fmt: skip
    assert "at step 1 (" in find_mlflow_runs(tmp_path)["local L6 λ=1e+09"].data.tags["failure"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "second", "code"),
    [
        ("sparsities=[1,3]", "sparsity=3", 0),
        ("sparsities=[1,1e9]", "sparsity=1000000000", 2),
    ],
)
def test_a_stopped_job_resumes_and_ends_with_the_same_bytes(
    given: str, second: str, code: int, run: Command, run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_large_penalties_infinite(monkeypatch)
    words = ("loss=e2e", "evaluation.latents=0", given)
    whole = run(*words, "tracking=none", code=code)
    original = SAEModule.on_train_batch_start

    def stop_training(self: SAEModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:  # in the last of four steps, after the checkpoint of step 2
            raise KeyboardInterrupt
        original(self, batch, batch_idx)

    # a job with a failed run counts as unfinished too; `resume` takes the newest
    with monkeypatch.context() as patch:
        patch.setattr(SAEModule, "on_train_batch_start", stop_training)
        broken = run(*words, code=130)
    assert checkpoint_step(broken / "checkpoints" / "last.ckpt") == 2
    assert run_crux(*short_job, *words, "resume=true", f"output_dir={tmp_path}") == code
    assert (broken / "DONE").exists() == (whole / "DONE").exists() == (code == 0)
    for name in ("sparsity=1", second):
        assert read_history(broken / name) == read_history(whole / name)
        assert (broken / name / "DONE").exists() == (whole / name / "DONE").exists()
        if (whole / name / "DONE").exists():
            weights = [(f / name / "sae" / "sae_weights.safetensors").read_bytes() for f in (whole, broken)]
            assert weights[0] == weights[1]
            expected, found = read_metrics(whole / name), read_metrics(broken / name)
            assert expected.pop("final/tokens_per_second") > 0
            assert found.pop("final/tokens_per_second") > 0
            assert found == expected
    states = {name: r.info.status for name, r in find_mlflow_runs(tmp_path).items()}
    assert len(states) == 3
    assert set(states.values()) == ({"FINISHED"} if code == 0 else {"FINISHED", "FAILED"})


@pytest.mark.slow
def test_a_sweep_of_jobs_with_many_saes(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path
) -> None:
    """The report contains the runs, not the jobs; in MLflow they are children of the sweep."""
    words = ("-m", "loss=local,e2e", "sparsities=[1,3]", "sweep_name=two", "evaluation.latents=0")
    assert run_crux(*short_job, *words, f"output_dir={tmp_path}") == 0
    sweep = tmp_path / "sweeps" / "two"
    assert len(list(sweep.glob("*/DONE"))) == 2
    settings = read_finished_runs(sweep).settings
    assert settings["loss"].tolist() == ["local", "local", "e2e", "e2e"]
    assert settings["λ, k or target L0"].tolist() == ["λ=1", "λ=3", "λ=1", "λ=3"]
    assert (sweep / "report.md").exists()
    runs = find_mlflow_runs(tmp_path)
    parent = runs.pop("two")
    assert set(runs) == {"local L6 λ=1", "local L6 λ=3", "e2e L6 λ=1", "e2e L6 λ=3"}
    jobs = {path.name for path in sweep.iterdir() if (path / "DONE").exists()}
    for child in runs.values():
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["job"] in jobs
