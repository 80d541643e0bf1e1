"""Many SAEs on one clean pass: each equals an SAE that is trained by itself, and a failing one does not affect the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from crux.sae.architectures.options import Auxk
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.architectures.topk import TopKSAE
from crux.sae.splicing import build_joint_splice, run_separate_splices
from crux.sae.training.non_finite import NonFiniteLossError
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.tally import Tally
from crux.subjects.subject import Subject
from crux.training.checkpoints import checkpoint_step
from tests.support.architectures import make_arguments
from tests.support.interrupted_runs import assert_resumed_equals_uninterrupted
from tests.support.small_runs import (
    HOOK,
    LOSSES,
    NO_AUXK,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_module,
    make_optimizer,
    make_sae,
    make_training_batches,
    run_fit,
)

Rows = list[tuple[int, dict[str, float]]]
STEPS = 10
LAMBDAS = {"sparsity=0.1": 0.1, "sparsity=0.5": 0.5, "sparsity=3": 3.0}
KS = {"k=2": 2, "k=5": 5, "k=9": 9}


class ManyRuns(NamedTuple):
    """Several runs of one job: their names, SAEs and λ, and the AuxK of all of them."""

    runs: tuple[str, ...]
    saes: list[SAE]
    sparsity: list[float]
    auxk: Auxk


def make_many_runs(name: str, subject: Subject) -> ManyRuns:
    """Return ReLU with three λ, or TopK with three k and AuxK, all with the same initial weights."""
    if name == "relu":
        return ManyRuns(tuple(LAMBDAS), [make_sae(subject) for _ in LAMBDAS], list(LAMBDAS.values()), NO_AUXK)
    saes = [
        TopKSAE(**make_arguments(d_model=subject.d_model, n_latents=48, subtract_b_dec=True), k=k) for k in KS.values()
    ]
    return ManyRuns(tuple(KS), list(saes), [0.0] * len(KS), Auxk(0.1, 4, 60))


class Trained(NamedTuple):
    """The results of a short training."""

    module: SAEModule
    gradients: list[dict[str, Tensor]]
    """The gradients of each step before clipping, by parameter of `saes`."""
    rows: Rows


def train(
    loss: Loss, subject: Subject, module: SAEModule, folder: Path, *, accumulate: int = 1, checkpoint_every: int = 1000,
    source: Sequence[Any] | None = None,
) -> Trained:  # fmt: skip
    """Train a module, on random tokens if no training batches are given."""
    gradients: list[dict[str, Tensor]] = []
    rows: Rows = []

    def record_gradients(optimizer: Any) -> None:
        gradients.append({n: p.grad.clone() for n, p in module.saes.named_parameters() if p.grad is not None})

    module.on_before_optimizer_step = record_gradients  # pyright: ignore[reportAttributeAccessIssue]
    if source is None:
        source = make_training_batches(loss, subject, draw_token_batches(subject, n=module.max_steps * accumulate))
    run_fit(
        module, source, checkpoints=folder, sinks=[lambda step, row: rows.append((step, row))], accumulate=accumulate,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    return Trained(module, gradients, rows)


@pytest.mark.parametrize(("sae", "accumulate"), [("relu", 1), ("topk", 2)])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_sae_equals_one_that_is_trained_by_itself(loss: Loss, sae: str, accumulate: int, tmp_path: Path) -> None:
    """Compare gradients and rows of ten steps, final weights, optimiser and tally; position 0 is left out of the loss."""
    subject = make_gpt2()
    many = make_many_runs(sae, subject)
    sites = [Site(HOOK, HOOK, each) for each in many.saes]
    options: dict[str, Any] = {
        "optimizer": make_optimizer(clip=0.5),
        "max_steps": STEPS,
        "auxk": many.auxk,
        "skip_positions": (0,),
    }
    module = make_module(loss, subject, sites=sites, sparsity=many.sparsity, runs=many.runs, **options)
    together = train(loss, subject, module, tmp_path / "together", accumulate=accumulate)
    assert len(together.gradients) == len(together.rows) == STEPS
    moments = module.trainer.optimizers[0].state
    for i, run in enumerate(many.runs):
        fresh = make_many_runs(sae, subject).saes[i]
        separate_module = make_module(loss, subject, sae=fresh, sparsity=many.sparsity[i], **options)
        separate = train(loss, subject, separate_module, tmp_path / run, accumulate=accumulate)
        for ours, theirs in zip(together.gradients, separate.gradients, strict=True):
            assert theirs.keys() == {"0.W_enc", "0.b_enc", "0.W_dec", "0.b_dec"}
            for name, gradient in theirs.items():
                torch.testing.assert_close(ours[f"{i}{name[1:]}"], gradient, rtol=1e-5, atol=1e-5)
        for (step, row), (separate_step, separate_row) in zip(together.rows, separate.rows, strict=True):
            run_row = {k.removeprefix(f"{run}/"): v for k, v in row.items() if k.startswith(f"{run}/")}
            assert step == separate_step
            assert run_row.keys() == separate_row.keys()
            assert run_row == pytest.approx(separate_row, rel=1e-5, abs=1e-6)
        theirs = separate_module.trainer.optimizers[0].state
        start = dict(make_many_runs(sae, subject).saes[i].named_parameters())
        for (name, p), q in zip(sites[i].sae.named_parameters(), fresh.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(moments[p]["exp_avg"], theirs[q]["exp_avg"], rtol=1e-5, atol=1e-5)
            assert (q - start[name]).abs().max() > 1e-3, "it should have moved"
        tally, separate_tally = module.tallies[i], separate_module.tallies[0]
        assert isinstance(tally, Tally)
        assert isinstance(separate_tally, Tally)
        assert torch.equal(tally.last_fired, separate_tally.last_fired)
    last = together.rows[-1][1]
    assert len({last[f"{run}/train/l0"] for run in many.runs}) == 3, "three different SAEs"
    if sae == "topk":
        assert any(row[f"{run}/train/auxk"] > 0 for _, row in together.rows for run in many.runs), (
            "AuxK should be at work"
        )


def test_one_replay_equals_separate_passes() -> None:
    """Compare at a hook inside a block, where the residual is carried along, and for transcoders, which write at another hook."""
    subject = make_gpt2()
    tokens = draw_token_batches(subject, n=1)[0]
    later = ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"]
    for read, write in (
        ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z"),
        ("blocks.1.hook_mlp_out", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"),
    ):
        sites = [Site(read, write, make_sae(subject, seed=seed)) for seed in range(3)]
        clean = subject.clean(tokens, capture=[read, write, *later])
        spliced, passed = run_separate_splices(subject, clean, sites, capture=later)
        for i, site in enumerate(sites):
            splice, own_passes = build_joint_splice([site], sides=None)
            separate = subject.spliced(clean, splice, capture=later)
            (own_pass,) = own_passes
            rows = slice(i * len(tokens), (i + 1) * len(tokens))
            torch.testing.assert_close(spliced.final[rows], separate.final)
            for hook in later:
                torch.testing.assert_close(spliced.activations[hook][rows], separate.activations[hook])
            torch.testing.assert_close(passed[i].codes.c, own_pass.codes.c)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_subject_is_run_once_for_all(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three SAEs need as many clean passes as one, and the suffix is replayed in one call."""
    calls: dict[int, list[str]] = {}
    for n in (1, 3):
        subject, seen = make_gpt2(), calls.setdefault(n, [])
        for name in ("_run", "spliced"):
            original = getattr(subject, name)
            monkeypatch.setattr(
                subject, name, lambda *a, f=original, n=name, seen=seen, **k: seen.append(n) or f(*a, **k)
            )
        sites = [Site(HOOK, HOOK, make_sae(subject)) for _ in range(n)]
        module = make_module(loss, subject, sites=sites, sparsity=[0.5] * n, runs=[str(i) for i in range(n)])
        source = make_training_batches(loss, subject, draw_token_batches(subject, n=4))
        for i in range(4):
            module.training_step(source[i], i).backward()
    assert calls[1] == calls[3]
    assert calls[1].count("_run") == 4


RUNS_WITH_A_BAD_ONE = ("sparsity=0.1", "sparsity=1e+38", "sparsity=3")
"""The loss of the middle run is infinite from the first step on."""


def make_bad_module(loss: Loss, subject: Subject, *, bad: float, steps: int = STEPS, log_every: int = 4) -> SAEModule:
    """Return a module with three SAEs, of which the middle one has this λ."""
    sites = [Site(HOOK, HOOK, make_sae(subject)) for _ in RUNS_WITH_A_BAD_ONE]
    return make_module(
        loss,
        subject,
        sites=sites,
        sparsity=[0.1, bad, 3.0],
        runs=RUNS_WITH_A_BAD_ONE,
        max_steps=steps,
        log_every=log_every,
    )


@pytest.mark.parametrize("checkpoint_every", [3, 5])
@pytest.mark.parametrize("loss", ["local", "e2e_ds", "fisher"])
def test_a_failed_sae_ends_and_the_others_are_unchanged(loss: Loss, checkpoint_every: int, tmp_path: Path) -> None:
    """The failure is noticed by a row or a checkpoint, whichever comes first; the other SAEs are equal bit for bit."""
    outcomes: dict[float, Trained] = {}
    for bad in (1.0, 1e38):
        subject = make_gpt2()
        module = make_bad_module(loss, subject, bad=bad)
        outcomes[bad] = train(loss, subject, module, tmp_path / str(bad), checkpoint_every=checkpoint_every)
    good, found = outcomes[1.0].module, outcomes[1e38].module
    assert good.failed == {}
    assert found.failed == {"sparsity=1e+38": 1}
    for i in (0, 2):
        for a, b in zip(good.sites[i].sae.parameters(), found.sites[i].sae.parameters(), strict=True):
            assert torch.equal(a, b)
    for (_, a), (_, b) in zip(outcomes[1.0].rows, outcomes[1e38].rows, strict=True):
        assert b.keys() == {k for k in a if not k.startswith("sparsity=1e+38/")}
        assert all(a[k] == v for k, v in b.items())
    path = tmp_path / "1e+38" / "last.ckpt"
    assert checkpoint_step(path) == STEPS // checkpoint_every * checkpoint_every
    state = torch.load(path, weights_only=True)
    numbers = [*state["state_dict"].values(), *state["row"]["sums"].values()]
    numbers += [v for s in state["optimizer_states"][0]["state"].values() for v in s.values()]
    assert len(numbers) > 20
    assert all(torch.isfinite(v).all() for v in numbers)
    assert state["state_dict"]["watch.first_bad_step"].tolist() == [-1, 1, -1]
    assert not any(w.any() for k, w in state["state_dict"].items() if k.startswith("saes.1.") and "scale" not in k)


def test_the_job_fails_if_all_saes_fail(tmp_path: Path) -> None:
    subject = make_gpt2()
    sites = [Site(HOOK, HOOK, make_sae(subject)) for _ in range(2)]
    module = make_module("e2e", subject, sites=sites, sparsity=[2e38, 1e38], runs=("a", "b"))
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(a\), step 1 \(b\);"):
        train("e2e", subject, module, tmp_path, checkpoint_every=2)
    assert not list(tmp_path.iterdir())


def test_a_failed_sae_is_still_failed_after_the_last_step(tmp_path: Path) -> None:
    """A job that was killed during the evaluation is not trained again, and must not evaluate the failed SAE."""
    for resume in (None, tmp_path / "last.ckpt"):
        subject = make_gpt2()
        module = make_bad_module("local", subject, bad=1e38, steps=6)
        source = make_training_batches("local", subject, draw_token_batches(subject, n=6))
        run_fit(module, source, checkpoints=tmp_path, checkpoint_every=3, resume=resume)
        module.end_failed_runs()
        assert module.failed == {"sparsity=1e+38": 1}


@pytest.mark.parametrize("bad", [1.0, 1e38])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_resumed_run_equals_an_uninterrupted_one(loss: Loss, bad: float, tmp_path: Path) -> None:
    def job() -> tuple[SAEModule, Sequence[Any]]:
        subject = make_gpt2()
        module = make_bad_module(loss, subject, bad=bad, steps=6, log_every=2)
        return module, make_training_batches(loss, subject, draw_token_batches(subject, n=6))

    whole = assert_resumed_equals_uninterrupted(job, tmp_path, steps=6, killed_after=4)
    last = whole.read_history()[-1]
    assert {key.partition("/")[0] for key in last} == {"step", *RUNS_WITH_A_BAD_ONE} - (
        {RUNS_WITH_A_BAD_ONE[1]} if bad > 1 else set()
    )
