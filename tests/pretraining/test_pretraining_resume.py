"""An interrupted pretraining resumes and gives the same numbers bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.pretraining.module import LanguageModel
from crux.runs.run_folder import RunFolder

TINY = ("experiment=pretrain", "pretrain.vocab_size=300", "pretrain.d_model=8", "pretrain.n_layers=1", "pretrain.n_heads=2",
        "pretrain.horizon=12", "pretrain.cooldown_steps=4", "optimizer.warmup_steps=2", "pretrain.stride=128",
        "model.context=128", "trainer.max_steps=10", "trainer.batch=2", "trainer.log_every=1",
        "trainer.checkpoint_every=4", "trainer.progress=false", "trainer.precision=float32")  # fmt: skip
"""A pretraining that takes seconds. The cosine would reach zero at step 12; the training ends at step 10, after 4 steps of cooldown."""


def open_only_run(outputs: Path) -> RunFolder:
    (path,) = (outputs / "runs").iterdir()
    return RunFolder(path)


@pytest.fixture(autouse=True)
def _use_one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and evaluate on one of the packaged texts only."""
    monkeypatch.setattr("crux.pretraining.job.SOURCES", ("moby-dick",))


def test_an_interrupted_pretraining_ends_in_the_same_numbers(
    run_crux: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run_crux(*TINY, "tracking=none", f"output_dir={tmp_path / 'whole'}") == 0
    step = LanguageModel.training_step

    def stop_at_step(self: LanguageModel, batch: torch.Tensor, batch_idx: int) -> None:
        if self.global_step == 6:  # two steps after the last checkpoint
            raise KeyboardInterrupt
        step(self, batch, batch_idx)

    outputs = f"output_dir={tmp_path / 'parts'}"
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "training_step", stop_at_step)
        assert run_crux(*TINY, outputs) == 130
    run = open_only_run(tmp_path / "parts")
    assert not run.done
    assert [row["step"] for row in run.read_history()] == [1, 2, 3, 4, 5, 6]
    assert run_crux(*TINY, outputs, "resume=true") == 0

    whole, resumed = open_only_run(tmp_path / "whole"), open_only_run(tmp_path / "parts")
    assert resumed.done
    assert resumed.read_history() == whole.read_history()
    a, b = (load_file(run.path / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    metrics = [json.loads((run.path / "metrics.json").read_text()) for run in (whole, resumed)]
    for values in metrics:
        del values["final/tokens_per_second"]
    assert metrics[0] == metrics[1]

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/parts/mlflow.db")
    (logged,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["d_model"] == "8"
    assert logged.data.metrics["final/bits_per_byte/moby-dick"] == metrics[0]["final/bits_per_byte/moby-dick"]
