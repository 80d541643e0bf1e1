"""Tests of the experiments that find planted modules and that compare dictionaries with what a network reads."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crux.degeneracy.experiments.shortcut import (
    HOOKS,
    LABEL_NOISE,
    SHORTCUT_AGREEMENT,
    draw_independent_samples,
    draw_training_samples,
    hide_modules,
    module_sign,
)
from crux.sae.architectures.relu import ReluSAE
from crux.sae.formats import saelens


def run(run_crux: Callable[..., int], outputs: Path, *given: str) -> tuple[Path, dict[str, float], str]:
    """Run a command and return its folder, metrics and report."""
    assert run_crux(*given, "tracking=none", "trainer.progress=false", f"output_dir={outputs}") == 0
    (folder,) = (outputs / "runs").iterdir()
    assert (folder / "DONE").exists()
    return folder, json.loads((folder / "metrics.json").read_text()), (folder / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_shortcut_module_is_found_and_removed(seed: int, run_crux: Callable[..., int], tmp_path: Path) -> None:
    folder, metrics, report = run(run_crux, tmp_path, "experiment=interaction_basis/modules", f"seed={seed}")
    assert metrics["final/checks_failed"] == 0
    assert metrics["final/modules"] == 2
    assert metrics["final/intact/misled"] > metrics["final/without_shortcut/misled"] + 0.3
    assert "(the shortcut)" in report
    assert len(list((folder / "figures").glob("*.png"))) == 4


def test_hiding_the_modules_does_not_change_the_network() -> None:
    rng = torch.Generator().manual_seed(0)
    widths = [8, 20, 20, 4]  # of both modules: inputs, neurons of the two hidden layers, scores
    W = [torch.randn(b, a, generator=rng, dtype=torch.float64) for a, b in itertools.pairwise(widths)]
    b = [torch.randn(n, generator=rng, dtype=torch.float64) for n in widths[1:]]
    out = torch.randn(4, generator=rng, dtype=torch.float64)
    network = hide_modules(W, b, out, rng)
    z = torch.randn(30, 8, generator=rng, dtype=torch.float64)
    h = [z]  # the input and the pre-activations of each layer
    for i in range(3):
        h.append((h[-1].relu() if i else h[-1]) @ W[i].T + b[i])
    torch.testing.assert_close(network.chain(z @ network.rotation)[:, 0], h[-1] @ out)
    found = network.chain.clean(z @ network.rotation, capture=HOOKS, final=False).activations
    for hook, value in zip(HOOKS, (h[0], h[1].relu(), h[2].relu(), h[3]), strict=True):
        for module, columns in enumerate(value.chunk(2, 1)):  # before hiding, each module had one half of the columns
            torch.testing.assert_close(found[hook] @ network.subspaces[hook][module], columns)


def test_shortcut_is_in_the_training_data_and_not_in_the_evaluation_data() -> None:
    rng = torch.Generator().manual_seed(0)
    z, label = draw_training_samples(20_000, rng)
    assert float((module_sign(z[:, 4:]) == label).double().mean()) == pytest.approx(SHORTCUT_AGREEMENT, abs=0.01)
    assert float((module_sign(z[:, :4]) != label).double().mean()) == pytest.approx(LABEL_NOISE, abs=0.01)
    samples = draw_independent_samples(20, torch.eye(8, dtype=torch.float64), rng)
    x = samples.x - samples.x.mean(0)
    assert float((x[:, :4].T @ x[:, 4:]).abs().max()) < 1e-10
    assert torch.equal(samples.concept, module_sign(samples.x[:, :4]))
    assert torch.equal(samples.shortcut, module_sign(samples.x[:, 4:]))


@pytest.mark.slow
def test_dictionaries_of_every_loss_in_three_seeds(run_crux: Callable[..., int], tmp_path: Path) -> None:
    folder, metrics, _ = run(run_crux, tmp_path, "experiment=interaction_basis/dictionaries")
    assert (
        metrics["final/checks"] == 27
    )  # per seed: one of the basis, two of local training, three each of e2e and e2e_ds
    assert metrics["final/checks_failed"] == 0
    assert (folder / "figures" / "outside.png").exists()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """Return a function that saves a random SAE and returns its folder."""

    def save(name: str, *, hook: str = "blocks.6.hook_resid_pre", seed: int = 0, **more: object) -> str:
        sae = ReluSAE(
            d_model=128, d_out=None, n_latents=40, init="tied", init_norm=1.0, subtract_b_dec=False,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        metadata = {
            "model_name": "tiny", "hook_name": hook, "process_weights": False, "context_size": 64, "prepend_bos": False,
            "dataset_path": "packaged", **more,
        }  # fmt: skip
        saelens.save_sae(sae, tmp_path / name, metadata)
        return str(tmp_path / name)

    return save


@pytest.mark.slow
def test_saved_saes_of_a_language_model(
    saved: Callable[..., str], run_crux: Callable[..., int], tmp_path: Path
) -> None:
    """The SAEs are random, so that their mean shares outside the subspace are those expected by chance."""
    folders = [
        saved("a", loss="local"), saved("b", loss="local", seed=1), saved("c", hook="blocks.7.hook_resid_pre", loss="e2e"),
        saved("d", hook_name_out="blocks.7.hook_mlp_out"),
    ]  # fmt: skip
    given = ("interaction_basis.dictionaries.tokens=1024", "interaction_basis.dictionaries.left_out=0.1")
    _, metrics, report = run(
        run_crux,
        tmp_path,
        "experiment=interaction_basis/dictionaries",
        f"interaction_basis.saes=[{','.join(folders)}]",
        *given,
    )
    for name in ("local 0", "local 1", "e2e", "d"):
        read = metrics[f"final/{name}/read"]
        assert 10 < read < 128
        # a random direction has this share outside a subspace of `read` of 128 dimensions
        assert metrics[f"final/{name}/mean"] == pytest.approx(1 - read / 128, abs=0.1)
        assert f"| {name} |" in report
    assert metrics["final/checks"] == 0  # the correct values are unknown


@pytest.mark.parametrize(
    ("experiment", "given", "says"),
    [
        ("modules", "interaction_basis.modularity.resolution=0", "modularity.resolution=0: must be more than 0"),
        ("modules", "interaction_basis.modularity.starts=0", "modularity.starts=0: must be 1 or more"),
        ("modules", "interaction_basis.saes=[x]", "this job has no such key"),
        ("modules", "layer=3", "layer: this job has no such key"),
        ("dictionaries", "interaction_basis.saes=[/nowhere]", "interaction_basis.saes: no SAE folder at /nowhere"),
        ("dictionaries", "interaction_basis.dictionaries.left_out=1", "left_out=1: must be from 0 up to but not 1"),
        ("dictionaries", "interaction_basis.dictionaries.tokens=9999", "is only for saved SAEs, which are given by interaction_basis.saes"),
    ],
)  # fmt: skip
def test_invalid_options_are_rejected_in_one_line(
    experiment: str,
    given: str,
    says: str,
    run_crux: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert run_crux(f"experiment=interaction_basis/{experiment}", given, f"output_dir={tmp_path}") == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "\n" not in error


def test_sae_without_its_hook_point_is_rejected(
    saved: Callable[..., str], run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(saved("a"))
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["hook_name"]
    (folder / "cfg.json").write_text(json.dumps(config))
    given = (f"interaction_basis.saes=[{folder}]", "tracking=none", f"output_dir={tmp_path}")
    assert run_crux("experiment=interaction_basis/dictionaries", *given) == 2
    assert "does not say its hook_name" in capsys.readouterr().err
