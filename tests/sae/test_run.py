"""The main job from start to end: its run folder, its MLflow run, and the reproducibility of its numbers."""

import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

STEPS, TOKENS = 4, 1024  # trainer.max_steps and evaluation.tokens of short_job
N_LATENTS = 16 * 128  # sae.ratio times the width of the packaged model
SUBSETS = ("", "/pos0", "/rest")
SPLIT = [  # metrics that exist for each of the SUBSETS
    *("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "ce_increase", "loss_recovered_zero", "loss_recovered_mean"),
    *("kl", "top1_agreement", "l0", "mse", "explained_variance", "cosine", "norm_ratio"),
    *("downstream_mse/7", "downstream_mse/8", "downstream_ev/7", "downstream_ev/8"),
]
ALIVE = [f"alive_heldout_{TOKENS}", f"alive_train_{STEPS * 2 * 256}", "alive_heldout", "alive_train"]
NAMES = {
    *(f"final/{name}{subset}" for name in SPLIT for subset in SUBSETS),
    *(f"final/{name}{share}" for name in ALIVE for share in ("", "_frac")),
    *("final/tokens_per_second", "final/downstream_positions", "final/sparsity"),
}


class Run(NamedTuple):
    """The folder, metrics and output of a finished run."""

    folder: Path
    outputs: Path
    metrics: dict[str, float]
    shown: str


@pytest.fixture(scope="module")
def make_run(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    def run_job(*overrides: str) -> Run:
        outputs = tmp_path_factory.mktemp("run")
        with redirect_stdout(StringIO()) as shown:
            assert (
                run_crux("loss=e2e_ds", "layer=6", "sparsity=1", *short_job, *overrides, f"output_dir={outputs}") == 0
            )
        (folder,) = (outputs / "runs").iterdir()
        return Run(folder, outputs, json.loads((folder / "metrics.json").read_text()), shown.getvalue())

    return run_job


@pytest.fixture(scope="module")
def tracked(make_run: Callable[..., Run]) -> Run:
    return make_run()


@pytest.fixture(scope="module")
def untracked(make_run: Callable[..., Run]) -> Run:
    return make_run("tracking=none")


def test_the_run_folder_is_complete(tracked: Run) -> None:
    found = {str(p.relative_to(tracked.folder)) for p in tracked.folder.rglob("*") if p.is_file()}
    assert found == {
        "config.yaml", "metrics.json", "history.crc", "history.jsonl", "text.json", "latents.html", "mlflow_run_id",
        "DONE", "checkpoints/last.ckpt",
        "sae/cfg.json", "sae/sae_weights.safetensors",
        "figures/loss_curves.png", "figures/downstream.png", "figures/densities.png",
    }  # fmt: skip
    assert tracked.folder.name.endswith("_e2e_ds_L6_s1")
    for figure in (tracked.folder / "figures").iterdir():
        assert figure.read_bytes().startswith(b"\x89PNG")
    assert "<html" in (tracked.folder / "latents.html").read_text("utf-8")


def test_the_configuration_is_resolved(tracked: Run) -> None:
    config = yaml.safe_load((tracked.folder / "config.yaml").read_text("utf-8"))
    assert (config["layer"], config["hook_point"]) == (6, "blocks.6.hook_resid_pre")
    assert config["sparsity"] == 1.0
    assert config["trainer"]["max_steps"] == STEPS
    assert config["optimizer"]["name"] == "adam"


def test_metrics_have_the_promised_names_and_are_numbers(tracked: Run) -> None:
    # an explained variance has no value if the activation does not vary; no other metric may be missing
    optional = {n for n in NAMES if ("explained_variance" in n or "downstream_ev" in n) and n.endswith("/pos0")}
    assert NAMES - optional <= tracked.metrics.keys() <= NAMES
    assert all(isinstance(v, float) and math.isfinite(v) for v in tracked.metrics.values())


def test_metrics_agree_with_one_another(tracked: Run) -> None:
    m = {name.removeprefix("final/"): value for name, value in tracked.metrics.items()}
    for s in SUBSETS:
        assert m[f"ce_increase{s}"] == pytest.approx(m[f"ce_spliced{s}"] - m[f"ce_clean{s}"], abs=1e-5)
        for ablation in ("zero", "mean"):
            ablated = m[f"ce_{ablation}{s}"]
            recovered = (ablated - m[f"ce_spliced{s}"]) / (ablated - m[f"ce_clean{s}"])
            assert m[f"loss_recovered_{ablation}{s}"] == pytest.approx(recovered, rel=1e-4)
    assert m["kl"] > 0
    context = 256
    assert m["l0"] == pytest.approx((m["l0/pos0"] + (context - 1) * m["l0/rest"]) / context, rel=1e-6)
    assert 0 < m["l0"] <= m[f"alive_heldout_{TOKENS}"] <= N_LATENTS
    assert m["alive_heldout"] == m[f"alive_heldout_{TOKENS}"]
    assert m[f"alive_heldout_{TOKENS}_frac"] == pytest.approx(m[f"alive_heldout_{TOKENS}"] / N_LATENTS)
    assert m["tokens_per_second"] > 0
    assert m["downstream_positions"] == 2  # the residual entering block 7, and the last one


def test_the_history_has_one_row_per_step_and_the_short_evaluations(tracked: Run) -> None:
    rows = [json.loads(line) for line in (tracked.folder / "history.jsonl").read_text("utf-8").splitlines()]
    training = [row for row in rows if "train/loss" in row]
    short = [row for row in rows if "val/ce_increase" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    assert [row["step"] for row in short] == [2, 4]
    for row in training:
        assert {
            "train/kl",
            "train/downstream",
            "train/sparsity",
            "train/l0",
            "train/grad_norm",
            "train/lr",
        } <= row.keys()
    for row in short:
        assert not any("zero" in name or "mean" in name for name in row)  # ablations are only in the final evaluation
    assert all(math.isfinite(v) for row in rows for v in row.values())


def test_the_checkpoint_holds_the_sae_and_not_the_subject(tracked: Run) -> None:
    path = tracked.folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == STEPS
    assert {name.partition(".")[0] for name in checkpoint["state_dict"]} == {
        "saes", "tallies", "sparsity", "watch",
    }  # fmt: skip
    sae_bytes = 4 * (2 * 128 * N_LATENTS + N_LATENTS + 128)  # four per float32; Adam keeps two more numbers per weight
    assert 3 * sae_bytes < path.stat().st_size < 3 * sae_bytes + 200_000  # a subject would be larger than this


def test_the_screen_shows_the_evaluation_and_the_paths(tracked: Run) -> None:
    for word in ("CE loss increase", "L0", "loss recovered, mean ablation", "nats/token", str(tracked.folder)):
        assert word in tracked.shown
    assert f"mlflow ui --backend-store-uri sqlite:///{tracked.outputs}/mlflow.db" in tracked.shown
    assert f"{tracked.metrics['final/ce_increase']:.4g}" in tracked.shown


def test_mlflow_has_one_finished_run(tracked: Run) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked.outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("crux")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (tracked.folder / "mlflow_run_id").read_text().strip()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "e2e_ds L6 λ=1")
    params, tags = run.data.params, run.data.tags
    assert (params["loss"], params["layer"], params["sparsity"], params["seed"]) == ("e2e_ds", "6", "1.0", "0")
    assert (params["n_latents"], params["tokens"]) == ("2048", str(STEPS * 2 * 256))
    assert (tags["loss"], tags["sae"], tags["layer"]) == ("e2e_ds", "relu", "6")
    assert "sweep" not in tags
    assert len(tags["git_sha"].removesuffix("-dirty")) == 12
    for name, value in tracked.metrics.items():
        assert run.data.metrics[name] == pytest.approx(value)
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in curve] == [1, 2, 3, 4]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/ce_increase")] == [2, 4]
    artifacts = {a.path for folder in ("", "figures", "sae") for a in client.list_artifacts(run.info.run_id, folder)}
    assert {
        "config.yaml", "metrics.json", "history.jsonl", "latents.html", "figures/loss_curves.png", "figures/downstream.png",
        "figures/densities.png", "sae/cfg.json", "sae/sae_weights.safetensors",
    } <= artifacts  # fmt: skip


def test_the_database_is_in_write_ahead_mode(tracked: Run) -> None:
    connection = sqlite3.connect(tracked.outputs / "mlflow.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.slow
def test_without_mlflow_nothing_else_is_lost(tracked: Run, untracked: Run) -> None:
    def names(run: Run) -> set[str]:
        return {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}

    assert names(untracked) == names(tracked) - {"mlflow_run_id"}
    assert {p.name for p in untracked.outputs.iterdir()} == {"runs"}
    assert "mlflow" not in untracked.shown


def test_the_same_command_gives_the_same_numbers(tracked: Run, untracked: Run) -> None:
    first, second = dict(tracked.metrics), dict(untracked.metrics)
    assert first.pop("final/tokens_per_second") > 0
    assert second.pop("final/tokens_per_second") > 0
    assert first == second
    assert (tracked.folder / "history.jsonl").read_bytes() == (untracked.folder / "history.jsonl").read_bytes()
    weights = [(r.folder / "sae" / "sae_weights.safetensors").read_bytes() for r in (tracked, untracked)]
    assert weights[0] == weights[1]


def test_another_seed_gives_other_numbers(untracked: Run, make_run: Callable[..., Run]) -> None:
    other = make_run("tracking=none", "seed=1", "evaluation.latents=0")
    assert other.metrics["final/ce_clean"] == untracked.metrics["final/ce_clean"]  # evaluated on the same windows
    assert other.metrics["final/ce_mean"] == untracked.metrics["final/ce_mean"]  # with the same mean ablation
    assert other.metrics["final/mse"] != untracked.metrics["final/mse"]
    assert not (other.folder / "latents.html").exists()


def test_the_saved_sae_is_evaluated_with_the_same_results(untracked: Run) -> None:
    import crux

    subject = crux.load_subject("tiny")
    sae, metadata = crux.load_sae(untracked.folder / "sae")
    assert metadata["hook_name"] == "blocks.6.hook_resid_pre"
    assert (metadata["model_name"], metadata["process_weights"], metadata["context_size"]) == ("tiny", False, 256)
    assert (metadata["loss"], metadata["sparsity"], metadata["dataset_path"]) == ("e2e_ds", 1.0, "packaged")
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(sae.n_latents))
    text = crux.load_text(subject, n_tokens=TOKENS, batch=2)
    again = crux.evaluate(subject, sae, hook=metadata["hook_name"], text=text).metrics
    for name, value in again.items():
        assert untracked.metrics[f"final/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    missing = untracked.metrics.keys() - {f"final/{name}" for name in again}
    training_metrics = ("tokens_per_second", "downstream_positions", "sparsity", "alive_heldout", "alive_heldout_frac")
    assert missing == {n for n in NAMES if "alive_train" in n or n.endswith(training_metrics)}
