"""`crux.train` runs a job as the command line does, and leaves the process as it was."""

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra

import crux


class Interrupt(L.Callback):
    """A callback that acts as if the user had pressed Ctrl-C after the second step."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 2:
            raise KeyboardInterrupt


def check_filters(before: list[Any]) -> None:
    """Check that the warning filters are as before. Libraries that are imported for the first time may have added theirs."""
    assert [entry for entry in warnings.filters if entry in before] == before


def process_state() -> dict[str, Any]:
    loggers = [logging.root, *(logging.getLogger(name) for name in ("mlflow", "alembic", "lightning.pytorch"))]
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "arguments": list(sys.argv),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # pyright: ignore[reportArgumentType, reportCallIssue]
        "loggers": [(logger.level, list(logger.handlers), logger.disabled) for logger in loggers],
        "warnings": warnings.showwarning,
        "hydra": (GlobalHydra.instance().hydra, version.getbase()),
        "folder": Path.cwd(),
    }


def test_a_run_has_its_numbers_its_table_and_its_sae_and_the_process_is_unchanged(
    short_job: tuple[str, ...], tmp_path: Path
) -> None:
    """It is called in a process in which the user has initialised Hydra, as in a notebook."""
    train = crux.train  # imports libraries
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        before, filters = process_state(), list(warnings.filters)
        run = train(["loss=local", "layer=2", *short_job, f"output_dir={tmp_path}"])
        assert process_state() == before
        check_filters(filters)
    assert run.state == "finished"
    assert run.metrics == json.loads((run.folder / "metrics.json").read_text())
    assert run.metrics["final/ce_increase"] > 0
    assert run.config["layer"] == 2
    assert run.config["loss"]["name"] == "local"
    assert list(run.history.index) == [1, 2, 3, 4]
    assert np.isfinite(run.history["train/loss"].to_numpy()).all()
    assert run.sae.n_latents == 2048
    assert list(run.saes) == ["blocks.2.hook_resid_pre"]
    assert set(run.figures) == {"densities", "downstream", "loss_curves"}
    assert run.latents_page == run.folder / "latents.html"
    assert "finished" in repr(run)
    assert "final/ce_increase" in repr(run)
    assert "<table>" in run._repr_html_()


@pytest.mark.slow
def test_several_saes_at_once(short_job: tuple[str, ...], tmp_path: Path) -> None:
    places = ["blocks.2.hook_resid_pre", "blocks.5.hook_mlp_out"]
    common = ["loss=local", "tracking=none", *short_job, "evaluation.latents=0", f"output_dir={tmp_path}"]
    joint = crux.train([f"hook_points=[{','.join(places)}]", *common])
    assert list(joint.saes) == places
    with pytest.raises(crux.UserError, match=r"2 SAEs: use run\.saes"):
        _ = joint.sae
    separate = crux.train(["sparsities=[1,2]", *common])
    assert list(separate.runs) == list(separate.saes) == ["sparsity=1", "sparsity=2"]
    assert separate.metrics["sparsity=2/final/l0"] == separate.runs["sparsity=2"].metrics["final/l0"]
    assert "sparsity=1/train/loss" in separate.history
    assert separate.runs["sparsity=1"].sae.n_latents == 2048
    table = crux.compare(separate)
    assert table["sparsity"].tolist() == [1, 2]
    assert table["final/l0"].tolist() == [run.metrics["final/l0"] for run in separate.runs.values()]


def test_an_experiment_has_a_report_and_no_sae(tmp_path: Path) -> None:
    run = crux.train(
        [
            "experiment=toy/basic",
            "debug=limit_training",
            "trainer.progress=false",
            "tracking=none",
            f"output_dir={tmp_path}",
        ]
    )
    assert run.metrics["final/checks"] > 0
    assert run.figures
    assert "check" in run.report
    with pytest.raises(crux.UserError, match="has no SAE: it trains none"):
        _ = run.sae


def test_ctrl_c_leaves_a_run_that_can_be_resumed(short_job: tuple[str, ...], tmp_path: Path) -> None:
    job = ["loss=local", "tracking=none", *short_job, "trainer.checkpoint_every=1", f"output_dir={tmp_path}"]
    stop = [f"+callbacks.stop._target_={__name__}.Interrupt"]
    train = crux.train
    before = process_state()
    with pytest.raises(KeyboardInterrupt):
        train([*job, *stop])
    assert process_state() == before
    (folder,) = (tmp_path / "runs").iterdir()
    run = crux.load_run(folder)
    assert repr(run).splitlines()[0].endswith("unfinished, with its last row at step 2")
    assert list(run.history.index) == [1, 2]
    with pytest.raises(crux.UserError, match="has no metrics: the run is unfinished"):
        _ = run.metrics
    table = crux.compare([run, run.folder])
    assert table["state"].tolist() == ["unfinished"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layr=6"], "layr: no such key; did you mean layer"),
        (["layer=99"], "layer=99: the model has 8 layers"),
        (["loss=e3e"], "loss=e3e: no such option; did you mean e2e"),
        (["trainer.max_steps=0"], "trainer.max_steps=0: must be 1 or more"),
        (["layer=2,4"], "layer=2,4: crux.train runs one job"),
        (["-m", "layer=2"], "-m: crux.train runs one job"),
        (["sweeps=pareto"], "sweeps=…: crux.train runs one job"),
        (["hydra/launcher=cpus"], "hydra/launcher starts the jobs of a sweep"),
        ("layer=6", "must be a list of strings"),
        (["+layr=6"], "layr: no such key"),
    ],
)
def test_mistakes_are_user_errors_before_a_run_begins(overrides: list[str], message: str, tmp_path: Path) -> None:
    given = overrides if isinstance(overrides, str) else [*overrides, f"output_dir={tmp_path}"]
    with pytest.raises(crux.UserError) as caught:
        crux.train(given)
    assert message in str(caught.value)
    assert not (tmp_path / "runs").exists()
