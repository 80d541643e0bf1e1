"""Tests of the experiments that compare bases: on a perceptron, on language models, and on modular addition."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from crux.config.paths import PACKAGE
from crux.degeneracy import comparison
from crux.sae.architectures.relu import ReluSAE
from crux.sae.formats import saelens
from tests.support.architectures import make_arguments

NAMES = ("neuron", "random", "pca", "local", "next-2", "global")
"""Names of all bases that are compared on the perceptron."""

SHORT = ("samples=4", "judged=2", "batch=2", "length=16", "directions=4", "edge_samples=2")
"""Options with which a comparison on a language model takes seconds."""


def run(run_crux: Callable[..., int], tmp_path: Path, experiment: str, *given: str) -> Path:
    """Run `interaction_basis/<experiment>` and return its folder; keys without a section belong to `interaction_basis.compare`."""
    keys = [
        key if "." in key.partition("=")[0] or key == "resume=true" else f"interaction_basis.compare.{key}"
        for key in given
    ]
    common = (f"experiment=interaction_basis/{experiment}", "tracking=none", "trainer.progress=false")
    assert run_crux(*common, *keys, f"output_dir={tmp_path}/out") == 0
    (found,) = (tmp_path / "out" / "runs").iterdir()
    return found


def read_metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def has_figures(folder: Path, *names: str) -> bool:
    return all((folder / "figures" / f"{name}.png").stat().st_size > 10_000 for name in names)


def test_short_perceptron_run_writes_figures_and_numbers(run_crux: Callable[..., int], tmp_path: Path) -> None:
    given = (
        "interaction_basis.perceptron.hidden=[8]", "interaction_basis.perceptron.steps=50", "hooks=[input,post0,output]",
        "samples=300", "judged=100", "batch=150", "ahead=2",
    )  # fmt: skip
    folder = run(run_crux, tmp_path, "mlp", *given)
    metrics, arrays = read_metrics(folder), load_file(folder / "arrays.safetensors")
    assert has_figures(folder, "spectra", "nodes", "edges")
    report = (folder / "report.md").read_text()
    for what in ("linear network: edges off the diagonal", "two blocks, width 8, 4 layers", "E f̂ᵀf̂"):
        (line,) = [line for line in report.splitlines() if line.startswith("|") and what in line][-1:]
        assert line.endswith("yes |")
    for name in NAMES:
        assert arrays[f"edges/{name}/input"].shape == (
            arrays[f"C/{name}/post0"].shape[1],
            arrays[f"C/{name}/input"].shape[1],
        )
        assert (arrays[f"edges/{name}/post0"] >= 0).all()
        assert metrics[f"final/nodes_needed/{name}/input"] <= metrics[f"final/size/{name}/input"] <= 12
        # with all directions or edges kept, the loss is the clean one
        assert arrays[f"nodes/{name}/post0"][-1, 1] == pytest.approx(metrics["final/clean_loss"], rel=1e-6)
        assert arrays[f"edge_losses/{name}/input"][-1, 1] == pytest.approx(metrics["final/clean_loss"], rel=1e-6)
        assert metrics[f"final/edges_needed/{name}/all"] == sum(
            metrics[f"final/edges_needed/{name}/{hook}"] for hook in ("input", "post0")
        )


def test_interrupted_comparison_is_resumed_after_its_last_intermediate_result(
    run_crux: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, arrays and history equal those of an uninterrupted run, and finished computations are not repeated."""
    given = (
        "interaction_basis.perceptron.hidden=[8]", "interaction_basis.perceptron.steps=600", "hooks=[input,post0,output]",
        "samples=200", "judged=50", "batch=100", "edge_ablation=[pca,local]",
    )  # fmt: skip
    whole = run(run_crux, tmp_path / "whole", "mlp", *given)
    calls: dict[str, int] = {"interaction_edges": 0, "interaction_bases": 0}

    def count_calls(name: str, *, dies_at: int) -> Callable[..., object]:
        original = getattr(comparison, name)

        def call(*args: object, **more: object) -> object:
            calls[name] += 1
            if calls[name] == dies_at:
                raise RuntimeError("killed")
            return original(*args, **more)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "interaction_edges", count_calls("interaction_edges", dies_at=4))
        with pytest.raises(RuntimeError, match="killed"):
            run(run_crux, tmp_path / "cut", "mlp", *given)
    calls["interaction_edges"] = 0
    for name in calls:
        monkeypatch.setattr(comparison, name, count_calls(name, dies_at=-1))
    resumed = run(run_crux, tmp_path / "cut", "mlp", *given, "resume=true")
    # of the six bases, the edges of the last three were not yet found; all bases were
    assert calls == {"interaction_edges": 3, "interaction_bases": 0}
    for name in ("metrics.json", "history.jsonl", "report.md"):
        assert (resumed / name).read_text() == (whole / name).read_text()
    a, b = (load_file(folder / "arrays.safetensors") for folder in (whole, resumed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (resumed / "pieces").exists()


@pytest.mark.slow
def test_interaction_basis_finds_the_inputs_that_a_perceptron_reads(
    run_crux: Callable[..., int], tmp_path: Path
) -> None:
    """The basis needs as many directions at the input as the task reads, and less than half as many edges as principal components."""
    folder = run(run_crux, tmp_path, "mlp")
    metrics = read_metrics(folder)
    assert metrics["final/checks_failed"] == 0
    assert has_figures(folder, "graph_local", "graph_neuron")
    assert 0 < metrics["final/modularity/local"] < 1 <= metrics["final/modules/local"]
    assert metrics["final/nodes_needed/global/input"] == 6  # of 12; the task reads six
    assert metrics["final/edges_needed/local/all"] < 0.5 * metrics["final/edges_needed/pca/all"]


def test_packaged_model_compared_with_an_sae(run_crux: Callable[..., int], tmp_path: Path) -> None:
    hook = "blocks.6.hook_resid_pre"
    sae = ReluSAE(**make_arguments(d_model=128, n_latents=160))
    about = {
        "model_name": "tiny", "hook_name": hook, "process_weights": False, "context_size": 16, "prepend_bos": False,
        "dataset_path": "packaged",
    }  # fmt: skip
    saelens.save_sae(sae, tmp_path / "sae", about)
    hooks = f"hooks=[{hook},blocks.7.hook_resid_pre,ln_final.hook_normalized]"
    given = (*SHORT, hooks, "bases=[pca,local]", "ahead=null", f"saes=[{tmp_path}/sae]", "edge_ablation=[local]")
    folder = run(run_crux, tmp_path, "tiny", *given)
    metrics, arrays = read_metrics(folder), load_file(folder / "arrays.safetensors")
    assert has_figures(folder, "spectra", "nodes", "edges")
    assert metrics["final/checks_failed"] == 0
    assert arrays[f"C_pinv/sae/{hook}"].shape == (160, 128)
    curve = arrays[f"nodes/sae/{hook}"]  # (latents kept, loss)
    assert curve[-1, 0] == 160
    assert curve[-1, 1] == pytest.approx(metrics["final/clean_loss"], rel=1e-4)
    assert curve[0, 1] > metrics["final/clean_loss"] + 0.5
    assert arrays[f"edges/local/{hook}"].shape == (4, 4)
    assert 1 < metrics["final/clean_loss"] < 5


@pytest.fixture
def random_gpt2(tmp_path: Path) -> Path:
    """Return the folder of a small random GPT-2 with the packaged tokenizer."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=2048, n_embd=32, n_layer=3, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    folder = tmp_path / "gpt2"
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PACKAGE / "assets" / "tiny" / name, folder)
    return folder


def test_gpt2_in_a_local_folder(run_crux: Callable[..., int], tmp_path: Path, random_gpt2: Path) -> None:
    hooks = "hooks=[blocks.1.attn.hook_z,blocks.2.hook_resid_pre,ln_final.hook_normalized]"
    folder = run(run_crux, tmp_path, "gpt2", *SHORT, f"model.path={random_gpt2}", hooks, "bases=[pca,global]")
    metrics = read_metrics(folder)
    assert metrics["final/checks_failed"] == 0
    assert metrics["final/size/global/blocks.2.hook_resid_pre"] <= 32
    assert has_figures(folder, "spectra", "nodes")


def test_modular_addition_counts_edges(run_crux: Callable[..., int], tmp_path: Path) -> None:
    """The network is hardly trained, so that nearly all held-out pairs are wrong and few edges are needed."""
    sizes = {"p": 7, "d_model": 8, "n_heads": 2, "d_mlp": 16}
    given = [f"interaction_basis.addition.{key}={value}" for key, value in sizes.items()]
    folder = run(run_crux, tmp_path, "modular_addition", *given, "trainer.max_steps=3", "within=0.9")
    metrics, arrays = read_metrics(folder), load_file(folder / "arrays.safetensors")
    assert arrays["edges/local/blocks.0.hook_resid_post"].shape[0] == 7
    assert arrays["C/neuron/output"].shape == (7, 7)
    assert 0.5 < metrics["final/clean_loss"] <= 1
    assert metrics["final/edges_needed/pca/all"] < 20
    assert "963" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("experiment", "given", "says"),
    [
        ("tiny", "hooks=[blocks.4.hook_resid_pre,blocks.2.hook_resid_pre]", "must be ln_final.hook_normalized"),
        ("tiny", "hooks=[blocks.4.hook_resid_pre,blocks.2.hook_resid_pre,ln_final.hook_normalized]", "out of order"),
        ("tiny", "hooks=[blocks.9.hook_resid_pre,ln_final.hook_normalized]", "the model has 8 layers"),
        ("tiny", "hooks=[ln_final.hook_normalized]", "must name two hook points or more"),
        ("tiny", "length=999", "the model's context has 256 tokens"),
        ("tiny", "bases=[svd]", "there is no svd; allowed are neuron, random, pca, local, next, global"),
        ("tiny", "bases=[]", "must name one or more"),
        ("tiny", "threshold=0", "must be between 0 and 1"),
        ("tiny", "ahead=null", "needs to know how many hook points"),
        ("tiny", "layer=3", "layer: this job has no such key"),
        ("gpt2", "probes=1", "HF_HUB_OFFLINE"),
        ("mlp", "length=5", "this job has no such key"),
        ("mlp", "last=logits", "allowed are pca, neuron"),
        ("mlp", "hooks=[output,input]", "the second must come after the first"),
        ("mlp", "hooks=[input,outptu]", "no such hook point; there are input, post0, post1, output"),
        ("mlp", "interaction_basis.perceptron.hidden=[]", "must be a list of at least one"),
    ],
)
def test_invalid_options_are_rejected_in_one_line(
    experiment: str,
    given: str,
    says: str,
    run_crux: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    key = given if given.startswith(("interaction_basis", "layer")) else f"interaction_basis.compare.{given}"
    common = ("tracking=none", "trainer.progress=false", f"output_dir={tmp_path}")
    steps = ("interaction_basis.perceptron.steps=1",) if experiment == "mlp" else ()
    assert run_crux(f"experiment=interaction_basis/{experiment}", *common, *steps, key) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
