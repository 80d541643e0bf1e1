"""SAEs on trained toy models, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crux.sae.training.sae_module import SAEModule

TOY = ("experiment=toy/intro_polygon", "trainer.max_steps=800", "optimizer.lr=1e-2", "trainer.batch=128", "toy.held_out=1024",
       "toy.seeds=1", "toy.densities=[0.1]", "trainer.progress=false", "tracking=none")  # fmt: skip
SAE = (
    "experiment=toy/sae",
    "sae.n_latents=10",
    "trainer.max_steps=1000",
    "evaluation.tokens=4096",
    "trainer.progress=false",
)


@pytest.fixture(scope="module")
def toy_run(run_crux: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a pentagon."""
    outputs = tmp_path_factory.mktemp("toy")
    assert run_crux(*TOY, f"output_dir={outputs}") == 0
    (run,) = (outputs / "runs").iterdir()
    return run


@pytest.mark.slow
def test_a_topk_sae_recovers_the_pentagon(run_crux: Callable[..., int], toy_run: Path, tmp_path: Path) -> None:
    given = (f"model.path={toy_run}", "sae=topk", "sae.k=1", f"output_dir={tmp_path}")
    assert run_crux(*SAE, *given) == 0
    (run,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["final/recovered"] == 1
    assert metrics["final/mean_max_cosine"] > 0.9
    assert metrics["final/l0"] <= 1
    assert (run / "figures" / "recovery.png").exists()
    assert (run / "sae" / "cfg.json").exists()
    assert (run / "DONE").exists()

    from mlflow import MlflowClient

    (logged,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert logged.data.metrics["final/recovered"] == metrics["final/recovered"]
    assert logged.data.params["hook_point"] == "hook_hidden"


@pytest.mark.slow
def test_end_to_end_preserves_more_of_the_output_per_active_latent(
    run_crux: Callable[..., int], toy_run: Path, tmp_path: Path
) -> None:
    metrics = {}
    for loss in ("local", "e2e"):
        given = (
            f"loss={loss}",
            f"model.path={toy_run}",
            "target_l0=0.4",
            "tracking=none",
            f"output_dir={tmp_path / loss}",
        )
        assert run_crux(*SAE, *given) == 0
        (run,) = (tmp_path / loss / "runs").iterdir()
        metrics[loss] = json.loads((run / "metrics.json").read_text())
        assert {
            "train/output_mse" in row for row in map(json.loads, (run / "history.jsonl").read_text().splitlines())
        } == {loss == "e2e"}
    assert metrics["e2e"]["final/output_explained_variance"] > metrics["local"]["final/output_explained_variance"]


def test_an_interrupted_training_has_the_same_results(
    run_crux: Callable[..., int], toy_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = (*SAE, "tracking=none", f"model.path={toy_run}", "loss=e2e", "target_l0=0.4", "trainer.max_steps=30")
    given = (*given, "trainer.checkpoint_every=10", "trainer.log_every=5")
    assert run_crux(*given, f"output_dir={tmp_path / 'whole'}") == 0
    step = SAEModule.training_step

    def interrupted(self: SAEModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 17:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SAEModule, "training_step", interrupted)
        assert run_crux(*given, f"output_dir={tmp_path / 'parts'}") == 130
    assert run_crux(*given, f"output_dir={tmp_path / 'parts'}", "resume=true") == 0
    (whole,), (parts,) = ((tmp_path / name / "runs").iterdir() for name in ("whole", "parts"))
    for name in ("metrics.json", "history.jsonl", "sae/cfg.json"):
        assert (parts / name).read_text() == (whole / name).read_text()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("loss=e2e_ds", "loss=e2e_ds: a toy model has nothing between its hidden layer and its output"),
        ("loss=fisher", "loss=fisher needs a language model's labels"),
        ("sae=gradient_topk", "sae=gradient_topk needs a language model's labels"),
        ("hook_point=blocks.0.hook_resid_pre", "hook_point: this job has no such key"),
        ("layer=0", "layer: this job has no such key"),
        ("data.name=x", "data.name: this job has no section data"),
        ("model.instance=1", "has instances 0 to 0"),
        ("sae.n_latents=null sae.ratio=0.1", "gives no latents at 2 dimensions"),
        ("target_l0=11", "the dictionary has 10 latents"),
        ("sae.output_hook=x", "sae.output_hook has no meaning on a toy model"),
        ("loss.skip_positions=[0]", "loss.skip_positions has no meaning on a toy model"),
        ("trainer.accelerator=cuda", "an SAE on a toy model is trained on the CPU"),
    ],
)
def test_unsuitable_options_are_rejected_in_one_line(
    given: str,
    says: str,
    run_crux: Callable[..., int],
    toy_run: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run_crux(*SAE, f"model.path={toy_run}", *given.split(), f"output_dir={tmp_path}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_run_with_several_models_is_rejected(
    run_crux: Callable[..., int], toy_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / "programs").mkdir(exist_ok=True)
        (tmp_path / "programs" / name).symlink_to(toy_run / "programs" / "model")
    assert run_crux(*SAE, f"model.path={tmp_path}", f"output_dir={tmp_path}") == 2
    message = f"the run has 2 models; set model.path to one of them, such as {tmp_path}/programs/a"
    assert message in capsys.readouterr().err
    assert run_crux("experiment=toy/sae", f"output_dir={tmp_path}") == 2
    assert "model.path=null: must be the run folder of a toy experiment" in capsys.readouterr().err
    assert run_crux(*SAE, "model.path=/nowhere", f"output_dir={tmp_path}") == 2
    assert "model.path=/nowhere: no such folder" in capsys.readouterr().err


def test_the_main_job_points_to_the_toy_job(toy_run: Path, error_message: Callable[..., str]) -> None:
    for place in (toy_run, toy_run / "programs" / "model"):
        assert f"{place} is a toy model: use experiment=toy/sae" in error_message(f"model.path={place}")
