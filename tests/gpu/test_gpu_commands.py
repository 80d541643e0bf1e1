"""Command lines on CUDA: every kind of job against the same command on the CPU, the main job's defaults, sweeps and refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import crux
from crux.runs.run_folder import RunFolder
from tests.support.cuda import DEVICE
from tests.support.infinite_penalty import make_large_penalties_infinite

pytestmark = pytest.mark.gpu

Command = Callable[..., int]

SAE_JOB = ("debug=limit", "trainer.precision=float32", "evaluation.latents=2", "layer=6")
SMALL_BASES = tuple(
    f"interaction_basis.compare.{key}"
    for key in ("samples=4", "judged=2", "batch=2", "length=16", "directions=4", "edge_samples=2")
)
PRETRAINING = (
    "experiment=pretrain", "pretrain.vocab_size=300", "pretrain.d_model=64", "pretrain.n_layers=2", "pretrain.horizon=12",
    "pretrain.cooldown_steps=4", "optimizer.warmup_steps=2", "model.context=128", "trainer.max_steps=10", "trainer.batch=4",
    "trainer.log_every=1", "trainer.precision=float32",
)  # fmt: skip
JOBS: dict[str, tuple[str, ...]] = {
    "e2e_ds": (*SAE_JOB, "loss=e2e_ds"),
    "local topk": (*SAE_JOB, "loss=local", "sae=topk"),
    "e2e jumprelu, weights processed": (*SAE_JOB, "loss=e2e", "sae=jumprelu", "model.process_weights=true"),
    "g-SAE": (*SAE_JOB, "loss=e2e", "sae=gradient_topk"),
    "kl_finetune": (*SAE_JOB, "loss=kl_finetune"),
    "two hook points": (*SAE_JOB[:-1], "loss=e2e_ds", "hook_points=[blocks.2.hook_resid_post,blocks.5.attn.hook_z]"),
    "transcoder": (
        *SAE_JOB[:-1], "loss=e2e", "hook_point=blocks.5.hook_resid_mid", "sae.output_hook=blocks.5.hook_mlp_out",
    ),
    "pretraining": PRETRAINING,
    "toy models": ("experiment=toy/basic", "trainer.max_steps=200", "toy.seeds=1"),
    "modular addition": (
        "experiment=interaction_basis/modular_addition_training", "interaction_basis.addition.p=11", "trainer.max_steps=20",
        "trainer.log_every=10",
    ),
    "learning coefficient": (
        "experiment=llc/language_model", "model.context=16", "llc.samples=4", "llc.minibatch=2", "llc.every=1",
        "llc.parameters=[transformer.h.7.ln_2.*]", "llc.chains=2", "llc.burn_in=4", "llc.draws=8",
    ),
    "interaction bases": ("experiment=interaction_basis/tiny", *SMALL_BASES),
    "spectra": ("experiment=degeneracy/spectra", "degeneracy.sequences=16", "model.context=64"),
}  # fmt: skip
TOLERANCE = {"toy models": 0.05, "learning coefficient": 0.05, "spectra": 0.05, "interaction bases": 0.05}
"""Relative tolerance of metrics that amplify rounding, such as ranks at thresholds and edges needed; 1 % for all others."""


def run_job(run_crux: Command, outputs: Path, *overrides: str) -> RunFolder:
    assert run_crux(*overrides, "trainer.progress=false", f"output_dir={outputs}") == 0
    (folder,) = (outputs / "runs").iterdir()
    return RunFolder(folder)


def read_metrics(folder: RunFolder) -> dict[str, float]:
    return json.loads((folder.path / "metrics.json").read_text("utf-8"))


def peak_memory() -> int:
    """Return the largest number of bytes that were allocated on the device since the last call."""
    if DEVICE.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


@pytest.mark.parametrize("name", JOBS)
def test_metrics_equal_those_of_the_cpu(
    name: str, run_crux: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crux.pretraining.job.SOURCES", ("moby-dick",))  # one of the packaged texts is enough
    expected = read_metrics(
        run_job(run_crux, tmp_path / "cpu", *JOBS[name], "tracking=none", "trainer.accelerator=cpu")
    )
    before = peak_memory()
    accelerator = f"trainer.accelerator={DEVICE.type}"
    actual = read_metrics(run_job(run_crux, tmp_path / "cuda", *JOBS[name], "tracking=none", accelerator))
    assert peak_memory() > before or DEVICE.type == "cpu", "nothing was computed on the device"
    speed = "final/tokens_per_second"
    for metrics in (expected, actual):
        metrics.pop(speed, None)
    assert actual == pytest.approx(expected, rel=TOLERANCE.get(name, 0.01), abs=2e-3)


def test_the_main_job_with_its_defaults(run_crux: Command, tmp_path: Path) -> None:
    """bfloat16 by default, tracked by MLflow; a second start continues from the checkpoint of the first."""
    given = ("loss=e2e_ds", "layer=6", "debug=limit")
    peak_memory()
    folder = run_job(run_crux, tmp_path, *given)
    assert peak_memory() > 0 or DEVICE.type == "cpu"
    assert folder.done
    metrics = read_metrics(folder)
    assert metrics["final/tokens_per_second"] > 0
    assert 2 < metrics["final/ce_clean"] < 4
    assert all(torch.tensor(list(metrics.values())).isfinite())
    assert (folder.path / "latents.html").exists()
    state = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
    assert {value.dtype for name, value in state["state_dict"].items() if "W_" in name} == {torch.float32}

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run((folder.path / "mlflow_run_id").read_text().strip())
    assert run.info.status == "FINISHED"
    assert run.data.metrics["final/ce_increase"] == metrics["final/ce_increase"]


def test_bfloat16_gives_about_the_metrics_of_float32(run_crux: Command, tmp_path: Path) -> None:
    given = ("loss=e2e_ds", "layer=6", "debug=limit", "trainer.max_steps=30", "tracking=none")
    half, full = (
        read_metrics(run_job(run_crux, tmp_path / precision, *given, f"trainer.precision={precision}"))
        for precision in ("bfloat16", "float32")
    )
    assert half["final/ce_clean"] == full["final/ce_clean"], "the evaluation is in float32"
    for name in ("ce_increase", "kl", "l0", "explained_variance"):
        assert half[f"final/{name}"] == pytest.approx(full[f"final/{name}"], rel=0.1, abs=0.02), name


def test_many_saes_at_once(run_crux: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run fails at once; the other two are finished."""
    make_large_penalties_infinite(monkeypatch)
    given = ("loss=e2e", "layer=6", "debug=limit", "sparsities=[1e9,1,5]", "tracking=none")
    assert run_crux(*given, "trainer.progress=false", f"output_dir={tmp_path}") == 2
    (job,) = (tmp_path / "runs").iterdir()
    finished = sorted(path.parent.name for path in job.glob("*/metrics.json"))
    assert finished == ["sparsity=1", "sparsity=5"]


def test_a_diverging_run_is_reported(
    run_crux: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_large_penalties_infinite(monkeypatch)
    given = ("loss=e2e", "layer=6", "debug=limit", "sparsity=1e9", "tracking=none", "trainer.progress=false")
    assert run_crux(*given, f"output_dir={tmp_path}") == 2
    assert "stopped being a finite number at step" in capsys.readouterr().err


def test_a_sweep_in_this_process(run_crux: Command, tmp_path: Path) -> None:
    given = ("-m", "loss=local,e2e", "seed=0,1", "debug=limit", "hydra/launcher=basic", "trainer.progress=false")
    assert run_crux(*given, f"output_dir={tmp_path}") == 0
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert len(list(sweep.glob("*/DONE"))) == 4


def test_one_gpu_is_enough_for_ddp_and_two_are_refused(
    run_crux: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.device_count() != 1:
        pytest.skip("this machine does not have one GPU")
    given = ("loss=local", "layer=6", "debug=limit", "trainer=ddp", "tracking=none", "trainer.progress=false")
    assert run_crux(*given, f"output_dir={tmp_path}") == 0
    assert run_crux(*given, "trainer.devices=2", f"output_dir={tmp_path}") == 2
    assert "trainer.devices=2: torch sees 1 GPU here" in capsys.readouterr().err


def test_a_notebook_keeps_its_generators(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.cuda.get_rng_state()
    run = crux.train(["loss=fisher", "layer=6", "debug=limit", "tracking=none", f"output_dir={tmp_path}"])
    assert run.state == "finished"
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_cpu_can_be_chosen_on_a_machine_with_a_gpu(run_crux: Command, tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated()
    peak_memory()
    run_job(run_crux, tmp_path, "loss=local", "layer=6", "debug=limit", "trainer.accelerator=cpu", "tracking=none")
    assert peak_memory() <= before
