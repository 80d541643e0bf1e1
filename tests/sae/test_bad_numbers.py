"""Whole jobs whose numbers are bad: they fail, or say that they have diverged."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crux.sae.architectures.relu import ReluSAE
from crux.sae.evaluation.evaluate_sae import evaluate_sae
from crux.sae.job import SaeTraining
from tests.support.toy_subject import ToySubject

Job = tuple[str, ...]


@pytest.fixture
def job(short_job: Job, tmp_path: Path) -> Job:
    return (*short_job, "loss=local", "layer=4", "tracking=none", f"output_dir={tmp_path}")


@pytest.mark.parametrize("lr", ["1e3", "1e6"])
def test_a_run_that_has_diverged_says_so(
    lr: str, run_crux: Callable[..., int], job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_crux(*job, f"optimizer.lr={lr}") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["final/diverged"] == 1.0
    assert metrics["final/ce_increase"] > metrics["final/ce_mean"] - metrics["final/ce_clean"]
    assert "DIVERGED, or hardly trained: CE loss increase of" in capsys.readouterr().out


def test_mlflow_shows_that_a_run_has_diverged(run_crux: Callable[..., int], job: Job, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    words = [word for word in job if word != "tracking=none"]
    assert run_crux(*words, "optimizer.lr=1e3") == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.data.metrics["final/diverged"] == 1.0
    assert run.data.tags["diverged"] == "true"
    assert run.data.tags["mlflow.note.content"].startswith("DIVERGED, or hardly trained: CE loss increase of")


def test_a_run_that_has_not_diverged_says_nothing(
    run_crux: Callable[..., int], job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_crux(*job) == 0
    (metrics,) = (tmp_path / "runs").glob("*/metrics.json")
    assert "final/diverged" not in json.loads(metrics.read_text())
    assert "DIVERGED" not in capsys.readouterr().out


@pytest.mark.parametrize("many", [False, True])
def test_final_metrics_that_are_not_finite_fail_the_run(
    many: bool, run_crux: Callable[..., int], job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of several runs in a job, the others are finished."""
    finish = SaeTraining.finish

    def finish_badly(self: SaeTraining, tracked_run, rate):
        outcome = finish(self, tracked_run, rate)
        if tracked_run.name == "" or "=2" in tracked_run.name:
            outcome = outcome._replace(metrics={**outcome.metrics, "final/kl": float("nan")})
        return outcome

    monkeypatch.setattr(SaeTraining, "finish", finish_badly)
    assert run_crux(*job, *(["sparsities=[1,2]"] if many else [])) == 2
    assert "final metrics are not finite numbers (kl is nan)" in capsys.readouterr().err
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "DONE").exists()
    assert not (folder / "metrics.json").exists()
    if many:
        done = {path.name: (path / "DONE").exists() for path in folder.iterdir() if (path / "config.yaml").exists()}
        assert sorted(done.values()) == [False, True]
        assert all("NaN" not in path.read_text() for path in folder.rglob("metrics.json"))


@pytest.mark.parametrize("loss", ["local", "e2e"])
def test_a_loss_without_tokens_is_named(
    loss: str, run_crux: Callable[..., int], job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in job if word != "loss=local"]
    assert run_crux(*words, f"loss={loss}", "loss.max_norm=0.001") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("crux: the loss had no token to count at step 1: loss.max_norm")
    assert "optimizer.lr" not in line


def test_all_positions_skipped(error_message: Callable[..., str]) -> None:
    message = error_message("loss=local", "model.context=4", "loss.skip_positions=[0,1,2,3]")
    assert message == "crux: loss.skip_positions: all 4 positions of the context are left out, so the loss has no token"


def evaluate_with_bias(bias: float, *, silent_token: bool) -> dict[str, float]:
    """Evaluate an SAE that reconstructs every activation as the same vector, on a network whose token 3 may have no activation."""
    generator = torch.Generator().manual_seed(0)
    embed, W_U = torch.randn(11, 6, generator=generator), torch.randn(11, 6, generator=generator)
    if silent_token:
        embed[3] = 0
    sae = ReluSAE(d_model=6, n_latents=4, init="tied", init_norm=1.0, subtract_b_dec=False, generator=generator)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_dec.fill_(bias)
    return evaluate_sae(
        ToySubject(embed=embed, blocks=[lambda h: h], W_U=W_U),
        sae,
        hook="blocks.0.hook_resid_pre",
        batches=[torch.tensor([[1, 3, 5, 2], [2, 4, 0, 3]])],
        mean_activation=torch.zeros(6),
    ).metrics


def test_an_infinite_metric_is_not_taken_for_one_without_a_value() -> None:
    """A metric whose denominator is zero is left out; one that overflows stays, so that the run fails."""
    metrics = evaluate_with_bias(1e25, silent_token=False)
    assert metrics["mse"] == math.inf
    assert metrics["explained_variance"] == -math.inf


def test_a_norm_ratio_without_a_value_is_left_out() -> None:
    assert "norm_ratio" in evaluate_with_bias(1.0, silent_token=False)
    metrics = evaluate_with_bias(1.0, silent_token=True)
    assert not [name for name in metrics if "norm_ratio" in name]
    assert all(map(math.isfinite, metrics.values()))
    assert "cosine" in metrics
