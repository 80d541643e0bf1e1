"""Short jobs besides the main one: other architectures and losses, several hook points, transcoders, resumed sweeps."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import crux
from crux.training.checkpoints import checkpoint_step
from tests.support.architectures import ARCHITECTURES

Command = Callable[..., Path]


@pytest.fixture
def run(run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path) -> Command:
    """Return a function that runs a short job without MLflow and returns its folder."""

    def run_job(*overrides: str) -> Path:
        before = set((tmp_path / "out" / "runs").glob("*"))
        assert run_crux(*short_job, "tracking=none", *overrides, f"output_dir={tmp_path / 'out'}") == 0
        (folder,) = set((tmp_path / "out" / "runs").glob("*")) - before
        return folder

    return run_job


def read_metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "sae", [sae if sae in ("relu", "topk") else pytest.param(sae, marks=pytest.mark.slow) for sae in ARCHITECTURES]
)
def test_every_architecture_is_an_option_whose_folder_opens_again(sae: str, run: Command) -> None:
    folder = run(f"sae={sae}", "loss=local", "sae.auxk.coefficient=0.03", "sae.auxk.dead_after=300")
    metrics = read_metrics(folder)
    loaded, metadata = crux.load_sae(folder / "sae")
    assert metadata["sae"] == sae
    torch.testing.assert_close(loaded.W_dec.norm(dim=-1), torch.ones(loaded.n_latents))
    subject = crux.load_subject("tiny")
    text = crux.load_text(subject, n_tokens=1024, batch=2)
    again = crux.evaluate(subject, loaded, hook=metadata["hook_name"], text=text).metrics
    for name, value in again.items():
        assert metrics[f"final/{name}"] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert any(name.startswith("final/with_gradient/") for name in metrics) == (sae == "gradient_topk")
    assert ("final/sparsity" in metrics) == (sae in ("relu", "jumprelu", "gated", "p_anneal"))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds", "kl_finetune", "fisher"])
@pytest.mark.parametrize("sae", ARCHITECTURES)
def test_the_same_command_trains_and_evaluates_every_pair(sae: str, loss: str, run: Command) -> None:
    """training/test_pairs.py checks that each pair learns, and that a resumed run equals an uninterrupted one."""
    metrics = read_metrics(run(f"sae={sae}", f"loss={loss}", "evaluation.latents=0"))
    assert {
        f"final/{name}" for name in ("ce_increase", "kl", "l0", "explained_variance", "tokens_per_second")
    } <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["fisher", "kl_finetune", "e2e"])
def test_a_g_sae_under_the_other_losses(loss: str, run: Command) -> None:
    metrics = read_metrics(run("sae=gradient_topk", f"loss={loss}", "sae.gradient_target=sampled", "sae.k=16"))
    assert metrics["final/l0"] <= 16
    assert metrics["final/with_gradient/ce_increase"] != metrics["final/ce_increase"]


@pytest.mark.slow
def test_several_hook_points_are_evaluated_one_by_one_and_together(run: Command) -> None:
    hooks = ["blocks.2.hook_resid_post", "blocks.5.attn.hook_z"]
    folder = run("loss=e2e_ds", f"hook_points=[{','.join(hooks)}]", "target_l0=100")
    metrics = read_metrics(folder)
    for hook in hooks:
        assert {
            f"final/{hook}/{name}" for name in ("ce_increase", "l0", "explained_variance", "sparsity")
        } <= metrics.keys()
        assert crux.load_sae(folder / "sae" / hook).metadata["hook_name"] == hook
        assert (folder / "figures" / f"densities_{hook}.png").exists()
        assert (folder / f"latents_{hook}.html").exists()
    increases = [metrics[f"final/{hook}/ce_increase"] for hook in hooks]
    assert metrics["final/ce_increase"] > max(increases)  # together they increase the CE more than either
    assert metrics["final/l0"] > max(metrics[f"final/{hook}/l0"] for hook in hooks)  # all their latents
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text("utf-8").splitlines()]
    assert {f"train/l0/{hook}" for hook in hooks} | {"train/l0", "train/lambda", "train/kl"} <= history[0].keys()


def test_a_transcoder(run: Command) -> None:
    read, write = "blocks.4.hook_resid_mid", "blocks.4.hook_mlp_out"
    folder = run("loss=e2e", "sae=topk", f"hook_point={read}", f"sae.output_hook={write}")
    sae, metadata = crux.load_sae(folder / "sae")
    assert (metadata["hook_name"], metadata["hook_name_out"]) == (read, write)
    subject = crux.load_subject("tiny")
    text = crux.load_text(subject, n_tokens=1024, batch=2)
    again = crux.evaluate(subject, sae, hook=read, output_hook=write, text=text).metrics
    assert read_metrics(folder)["final/ce_increase"] == pytest.approx(again["ce_increase"], rel=1e-4)


@pytest.mark.parametrize(
    "sae", ["relu", *(pytest.param(sae, marks=pytest.mark.slow) for sae in ("topk", "jumprelu", "gated"))]
)
def test_finetuning_starts_from_the_saved_sae(sae: str, run: Command) -> None:
    first = run(f"sae={sae}", "loss=local")
    # with so low a learning rate the weights stay those of the saved SAE
    no_training = ("optimizer.lr=1e-12", "loss=kl_finetune", "loss.finetune_share=1.0")
    second = run(f"sae={sae}", f"sae.start_from={first / 'sae'}", *no_training)
    saved, started = read_metrics(first), read_metrics(second)
    for name in ("ce_increase", "l0", "mse", "kl"):
        assert started[f"final/{name}"] == pytest.approx(saved[f"final/{name}"], rel=1e-3, abs=1e-4), name


def test_a_saved_sae_is_not_trained_at_another_place(
    run: Command,
    run_crux: Callable[..., int],
    short_job: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The SAE of `short_job` belongs to block 2 of the packaged model; another place is an error before anything is loaded."""
    sae = run("loss=local") / "sae"
    hook = json.loads((sae / "cfg.json").read_text())["metadata"]["hook_name"]
    elsewhere = ("loss=local", f"sae.start_from={sae}", f"output_dir={tmp_path / 'other'}", "tracking=none")
    for words, message in {
        ("layer=5",): f"reads {hook}, not blocks.5.hook_resid_pre",
        ("hook_point=blocks.2.hook_mlp_out",): f"reads {hook}, not blocks.2.hook_mlp_out",
        ("sae.output_hook=blocks.2.hook_mlp_out",): f"writes {hook}, not blocks.2.hook_mlp_out",
        ("model.process_weights=true",): "belongs to a model with process_weights=false, not true",
    }.items():
        assert run_crux(*short_job, *elsewhere, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"crux: sae.start_from={sae}: the SAE {message}; sae.force=true uses it nevertheless"
    assert run_crux(*short_job, *elsewhere, "layer=5", "sae.force=true") == 0
    assert f"the SAE reads {hook}, not blocks.5.hook_resid_pre; it is used nevertheless" in capsys.readouterr().err
    (second,) = (tmp_path / "other" / "runs").glob("*/sae")
    assert crux.load_sae(second).metadata["start_from"] == str(sae)


def test_a_folder_of_another_architecture_is_rejected(
    run: Command,
    run_crux: Callable[..., int],
    short_job: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = run("sae=topk", "loss=local")
    assert run_crux(*short_job, "sae=relu", f"sae.start_from={first / 'sae'}", f"output_dir={tmp_path / 'other'}") == 2
    assert "holds a TopKSAE, which a ReluSAE cannot start from" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_sweep_is_resumed_and_ends_with_its_table(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The second of three jobs is stopped after its checkpoint; the same command then does only the remaining steps."""
    from crux.sae.training.sae_module import SAEModule

    command = (
        *short_job, "-m", "loss=local,e2e", "sae=topk", "seed=0,1", "sweep_name=two", "tracking=none", "trainer.checkpoint_every=2",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    original, steps = SAEModule.on_train_batch_start, []

    def stop_training(self: SAEModule, batch: Any, batch_idx: int) -> None:
        steps.append(batch_idx)
        if len(steps) == 4 + 4:  # in the last step of the second job
            raise KeyboardInterrupt
        original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SAEModule, "on_train_batch_start", stop_training)
        assert run_crux(*command) == 130
    sweep = tmp_path / "sweeps" / "two"
    assert len(list(sweep.glob("*/DONE"))) == 1
    unfinished = next(p for p in sweep.glob("*/checkpoints/last.ckpt") if not (p.parents[1] / "DONE").exists())
    assert checkpoint_step(unfinished) == 2

    steps.clear()
    capsys.readouterr()

    def count_step(self: SAEModule, batch: Any, batch_idx: int) -> None:
        steps.append(batch_idx)
        original(self, batch, batch_idx)

    monkeypatch.setattr(SAEModule, "on_train_batch_start", count_step)
    assert run_crux(*command) == 0
    assert len(steps) == 2 + 4 + 4, "a finished job does not run again, a stopped one continues from its checkpoint"
    shown = capsys.readouterr().out
    assert "done before" in shown
    report = (sweep / "report.md").read_text("utf-8")
    table = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("|")]
    assert table[:4] == ["loss", "---", "local", "e2e"]
    assert len(list(sweep.glob("*/DONE"))) == 4
