"""The sampling experiments, from the command line: k-gons, linear networks, perceptrons, training runs, a language model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.llc.experiments.language_model import text_windows
from crux.llc.language_models import next_token_loss, select_parameters
from crux.llc.options import Split
from crux.subjects.load import load_subject
from crux.text.report import SideReport, TextReport
from crux.text.tokens import Tokens

SHORT_CHAINS = ("llc.chains=2", "llc.burn_in=4", "llc.draws=8", "tracking=none", "trainer.progress=false")


def run(run_crux: Callable[..., int], outputs: Path, *given: str) -> tuple[dict[str, float], Path]:
    """Run a job; return its metrics and its folder."""
    assert run_crux(*given, f"output_dir={outputs}") == 0
    (folder,) = (outputs / "runs").iterdir()
    assert all(path.stat().st_size > 10_000 for path in (folder / "figures").iterdir())
    return json.loads((folder / "metrics.json").read_text()), folder


def test_coefficient_of_a_pentagon_is_seven(run_crux: Callable[..., int], tmp_path: Path) -> None:
    metrics, folder = run(
        run_crux, tmp_path, "experiment=llc/kgon", "llc.corners=[5]", "llc.nbetas=[1e5]", "llc.burn_in=30", "llc.draws=100",
        "tracking=none",
    )  # fmt: skip
    assert metrics["final/checks_failed"] == 0
    arrays = load_file(folder / "arrays.safetensors")
    assert abs(float(arrays["mean"]) - 7) < 4 * float(arrays["standard_error"]) < 2


@pytest.mark.slow
def test_linear_network_approaches_its_coefficient(run_crux: Callable[..., int], tmp_path: Path) -> None:
    metrics, folder = run(
        run_crux, tmp_path, "experiment=llc/linear", "llc.widths=[[2,1,2]]", "llc.ranks=[0]", "llc.nbetas=[1e2,1e4]",
        "llc.burn_in=50", "llc.draws=100", "llc.leapfrogs=40", "tracking=none",
    )  # fmt: skip
    assert metrics["final/checks_failed"] == 0
    assert "distance from λ = 1 at the largest nβ" in (folder / "report.md").read_text()


def test_effective_parameters_of_a_perceptron(run_crux: Callable[..., int], tmp_path: Path) -> None:
    metrics, _ = run(
        run_crux, tmp_path, *SHORT_CHAINS, "experiment=llc/behavioural", "llc.hidden=[3]", "llc.samples=32", "llc.nbetas=[1e2,1e4]"
    )  # fmt: skip
    assert metrics["final/checks"] > 0


def test_training_of_a_toy_model(run_crux: Callable[..., int], tmp_path: Path) -> None:
    metrics, folder = run(
        run_crux, tmp_path, *SHORT_CHAINS, "experiment=llc/toy_training", "trainer.max_steps=200", "toy.snapshots=10", "toy.seeds=2",
        "toy.held_out=1024", "llc.checkpoints=3", "llc.nbetas=[1e4]", "llc.samples=32",
    )  # fmt: skip
    report = (folder / "report.md").read_text()
    assert "not a minimum" in report
    assert "its gradient has norm" in report
    assert "Behavioural loss" in report
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert any("train/loss" in row for row in rows)
    (other := tmp_path / "again").mkdir()  # model.path accepts the run folder
    again, _ = run(
        run_crux, other, *SHORT_CHAINS, "experiment=llc/toy_training", f"model.path={folder}", "model.instance=1", "llc.checkpoints=2",
        "llc.nbetas=[1e4]", "llc.samples=32",
    )  # fmt: skip
    assert again["final/checks"] == metrics["final/checks"]


@pytest.mark.slow
def test_training_of_an_sae(run_crux: Callable[..., int], tmp_path: Path) -> None:
    _, folder = run(
        run_crux, tmp_path, *SHORT_CHAINS, "experiment=llc/sae_training", "trainer.max_steps=60", "llc.checkpoints=3",
        "llc.nbetas=[1e4]", "llc.samples=64",
    )  # fmt: skip
    assert "Behavioural loss" in (folder / "report.md").read_text()


@pytest.mark.slow
def test_some_parameters_of_the_packaged_model(run_crux: Callable[..., int], tmp_path: Path) -> None:
    metrics, folder = run(
        run_crux, tmp_path, *SHORT_CHAINS, "experiment=llc/language_model", "model.context=16", "llc.samples=4", "llc.minibatch=2",
        "llc.every=1", "llc.parameters=[transformer.h.7.ln_2.*]", "llc.gradient_text=train",
    )  # fmt: skip
    assert metrics["final/parameters"] == 256  # weight and bias of a norm, 128 each
    assert 2 < metrics["final/loss"] < 6  # nats per token; uniform over 2,048 tokens it would be 7.6
    assert "2 sequences drawn anew at every step (train)" in (folder / "report.md").read_text()


def test_language_model_loss_is_the_cross_entropy(cache: Path) -> None:
    subject = load_subject("tiny", process_weights=False)
    tokens = torch.arange(3 * 12).view(3, 12) * 37 % subject.d_vocab
    parameters = select_parameters(subject.model, ["transformer.h.0.mlp.*", "transformer.wte.weight"])
    losses = next_token_loss(subject.model)(parameters, tokens)
    logits = subject.model(tokens).logits.detach()
    want = torch.stack([torch.nn.functional.cross_entropy(z[:-1], x[1:]) for z, x in zip(logits, tokens, strict=True)])
    torch.testing.assert_close(losses.detach(), want)


def test_text_windows_come_from_the_requested_part(tmp_path: Path) -> None:
    train, held_out = torch.arange(1000).numpy(), torch.arange(1000, 1100).numpy()
    one, other = (SideReport(documents=1, documents_left_out=0, tokens=n, bytes=None, files=1) for n in (1000, 100))
    tokens = Tokens(train, held_out, TextReport("by hash", 20, one, other, [], [], [], largest_id=1099), tmp_path)
    assert text_windows(tokens, Split.held_out, context=10, n=4).min() >= 1000
    assert text_windows(tokens, Split.train, context=10, n=None).shape == (100, 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("kgon llc.corners=[9]", "must be numbers that are from 5 to 8"),
        ("kgon llc.nbetas=[0]", "must be numbers that are more than 0"),
        ("kgon llc.widths=[[2,2]]", "llc.widths: this job has no such key"),
        ("kgon llc.step_size=1", "diverges: at w*"),
        ("linear llc.ranks=[1]", "must be one for each of the 3 networks"),
        ("language_model llc.parameters=[transformer.h.9.*]", "matches no parameter of the model; nearest are transformer.h."),
        ("toy_training model.path=nowhere", "nowhere"),
    ],
)  # fmt: skip
def test_invalid_values_are_rejected(
    given: str, message: str, run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    experiment, *rest = given.split()
    sampler = ["llc.sampler=sgld"] if "step_size" in given else []
    assert run_crux(f"experiment=llc/{experiment}", *rest, *sampler, "tracking=none", f"output_dir={tmp_path}") == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
