"""Short trainings: every loss improves, micro-batches add up, and failures end the run with the right error."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.jumprelu import JumpReluSAE
from crux.sae.losses import label
from crux.sae.training.activations import Activations
from crux.sae.training.non_finite import NonFiniteLossError
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.tally import Tally
from crux.subjects.subject import Subject
from crux.training.checkpoints import checkpoint_step
from tests.support.architectures import make_arguments
from tests.support.small_runs import (
    HOOK,
    LOSSES,
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


def append_to(rows: Rows) -> Callable[[int, dict[str, float]], None]:
    return lambda step, row: rows.append((step, row))


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_goes_down(loss: Loss, name: str, tmp_path: Path) -> None:
    subject, rows = make_gpt2(), Rows()
    module = make_module(
        loss,
        subject,
        sae=make_sae(subject, n_latents=64),
        sparsity=0.05,
        optimizer=make_optimizer(name=name, lr=1e-2),
        max_steps=60,
        log_every=10,
    )
    tokens = draw_token_batches(subject, n=60, batch=4)
    rate = run_fit(module, make_training_batches(loss, subject, tokens), checkpoints=tmp_path, sinks=[append_to(rows)])
    assert rate is not None
    assert rate > 0
    assert [step for step, _ in rows] == [10, 20, 30, 40, 50, 60]
    first, last = rows[0][1], rows[-1][1]
    assert last["train/loss"] < 0.7 * first["train/loss"]
    terms = {
        "local": ["mse"],
        "e2e": ["kl"],
        "e2e_ds": ["kl", "downstream"],
        "fisher": ["mse", "fisher"],
        "kl_finetune": ["mse"],
    }[loss]
    for term in terms:
        assert last[f"train/{term}"] < 0.7 * first[f"train/{term}"], term
    always = {f"train/{k}" for k in (*terms, "loss", "sparsity", "l0", "grad_norm", "lr")}
    assert first.keys() == always
    if loss == "kl_finetune":  # steps 31 to 60 also use the KL
        assert [row.keys() - always for _, row in rows] == 3 * [set()] + 3 * [{"train/kl"}]
        assert last["train/kl"] < rows[3][1]["train/kl"]
    else:
        assert last.keys() == always


def test_thresholds_have_their_own_rate_and_no_decay(tmp_path: Path) -> None:
    """Adam's first step is lr · sign(gradient); a weight decay of 10 would also subtract 10 · lr of every weight."""
    subject = make_gpt2()
    sae = JumpReluSAE(
        **make_arguments(d_model=16, n_latents=32, init_norm=1.0), threshold=0.3, bandwidth=0.5, threshold_rate=7.0
    )
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    large_decay = make_optimizer(name="adamw", weight_decay=10.0, lr=1e-3, warmup_steps=0)
    module = make_module("local", subject, optimizer=large_decay, max_steps=1, sae=sae)
    run_fit(
        module, make_training_batches("local", subject, draw_token_batches(subject, n=1, batch=8)), checkpoints=tmp_path
    )
    moved = (sae.get_parameter("log_threshold") - before["log_threshold"]).abs().detach()
    moved = moved[moved > 0]  # for latents that fire on some token
    assert len(moved) > 5
    torch.testing.assert_close(moved, torch.full_like(moved, 7e-3), rtol=1e-3, atol=0.0)
    W_dec = before["W_dec"] * (1 - 1e-2)
    assert float((sae.W_dec.detach() - W_dec).abs().max()) == pytest.approx(1e-3, rel=1e-2)


def test_a_row_is_the_mean_of_its_steps_and_adds_up(tmp_path: Path) -> None:
    """In every row, loss = kl + 2 · downstream + λ · sparsity; a row of two steps is the mean of two rows of one step."""
    found: dict[int, Rows] = {1: [], 2: []}
    for log_every, rows in found.items():
        subject = make_gpt2()
        module = make_module("e2e_ds", subject, log_every=log_every)
        run_fit(
            module, draw_token_batches(subject, n=6), checkpoints=tmp_path / str(log_every), sinks=[append_to(rows)]
        )
    for _, row in found[1]:
        total = row["train/kl"] + 2.0 * row["train/downstream"] + 0.5 * row["train/sparsity"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
        assert 0 < row["train/l0"] <= 32
    for i, (step, row) in enumerate(found[2]):
        (a_step, a), (b_step, b) = found[1][2 * i : 2 * i + 2]
        assert (a_step, b_step) == (step - 1, step)
        for key in ("train/loss", "train/kl", "train/downstream", "train/sparsity", "train/l0"):
            assert row[key] == pytest.approx((a[key] + b[key]) / 2, rel=1e-5)
    # rows have the rate after their step: a warm-up of 2 steps, then a cosine over 4 steps to 0.1
    assert found[1][0][1]["train/lr"] == pytest.approx(3e-3)
    assert found[1][-1][1]["train/lr"] == pytest.approx(3e-4)


class Gradients:
    """Records the gradients that the optimiser receives in each step."""

    def __init__(self, module: SAEModule, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[list[Tensor]] = []

        def record_gradients(optimizer: Any) -> None:
            self.steps.append([p.grad.clone() for p in module.saes.parameters() if p.grad is not None])

        monkeypatch.setattr(module, "on_before_optimizer_step", record_gradients)


def join_batches(batches: Sequence[Any]) -> Any:
    """Return several batches of one kind as one batch."""
    if isinstance(batches[0], Tensor):
        return torch.cat(list(batches))
    return Activations({h: torch.cat([b.values[h] for b in batches]) for h in batches[0].values}, {})


@pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if loss != "kl_finetune"]
)  # its α = MSE/KL is computed for each batch
def test_two_micro_batches_equal_one_batch(loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "draw_labels", lambda q, generator: q.argmin(-1))  # fisher draws labels per batch
    subject = make_gpt2()
    tokens = draw_token_batches(subject, n=12)
    source = make_training_batches(loss, subject, tokens)
    small = [source[i] for i in range(12)]
    large = [join_batches(small[i : i + 2]) for i in range(0, 12, 2)]
    gradients: list[Gradients] = []
    modules: list[SAEModule] = []
    for accumulate, batches in ((2, small), (1, large)):
        module = make_module(loss, subject)
        gradients.append(Gradients(module, monkeypatch))
        run_fit(module, batches, checkpoints=tmp_path / str(accumulate), accumulate=accumulate)
        (tally,) = module.tallies
        assert isinstance(tally, Tally)
        assert tally.tokens_seen == 12 * 24
        modules.append(module)
    two, one = gradients
    assert len(two.steps) == len(one.steps) == 6
    for a, b in zip(two.steps[0], one.steps[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    start = dict(make_sae(subject).named_parameters())
    for (name, a), b in zip(modules[0].sites[0].sae.named_parameters(), modules[1].saes.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert (a - start[name]).abs().max() > 1e-3, f"{name} did not move"


def test_the_gradient_is_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, rows = make_gpt2(), Rows()
    module = make_module("e2e", subject, optimizer=make_optimizer(clip=1e-3))
    gradients = Gradients(module, monkeypatch)
    clipped: list[float] = []
    original = module.configure_gradient_clipping

    def clip(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        clipped.append(
            float(torch.cat([p.grad.flatten() for p in module.saes.parameters() if p.grad is not None]).norm())
        )

    monkeypatch.setattr(module, "configure_gradient_clipping", clip)
    run_fit(module, draw_token_batches(subject, n=6), checkpoints=tmp_path, sinks=[append_to(rows)])
    for unclipped, after, (_, row) in zip(gradients.steps, clipped, rows, strict=True):
        norm = float(torch.cat([g.flatten() for g in unclipped]).norm())
        assert norm > 1e-2
        assert after == pytest.approx(1e-3, rel=1e-3)
        assert row["train/grad_norm"] == pytest.approx(norm, rel=1e-5), "the norm before clipping is logged"


class BatchesWithInfinity(Sequence[Activations]):
    """Batches of activations, of which batch `bad` contains one infinite number."""

    def __init__(self, subject: Subject, *, bad: int) -> None:
        self.bad, self.clean = bad, make_training_batches("local", subject, draw_token_batches(subject, n=40))

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, i: int) -> Activations:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.clean[i].values[HOOK].clone()
        if i == self.bad:
            x[3, 2] = float("inf")
        return Activations({HOOK: x}, {})


@pytest.mark.parametrize(
    ("log_every", "checkpoint_every", "kept"),
    [(1, 2, 6), (10, 3, 6), (10, 100, None), (100, 100, None)],  # noticed by a row, a checkpoint, a row, and at the end
)
def test_a_non_finite_batch_stops_the_run_and_is_never_saved(
    log_every: int, checkpoint_every: int, kept: int | None, tmp_path: Path
) -> None:
    subject, rows = make_gpt2(), Rows()
    module = make_module("local", subject, max_steps=12, log_every=log_every)
    with pytest.raises(NonFiniteLossError, match=r"at step 7;"):  # batch 6 belongs to the seventh step
        run_fit(
            module,
            BatchesWithInfinity(subject, bad=6),
            checkpoints=tmp_path,
            checkpoint_every=checkpoint_every,
            sinks=[append_to(rows)],
        )
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for _, row in rows)
    last = tmp_path / "last.ckpt"
    assert sorted(p.name for p in tmp_path.iterdir()) == (["last.ckpt", "previous.ckpt"] if kept else [])
    if kept:
        assert checkpoint_step(last) == kept
        state = torch.load(last, weights_only=True)
        assert all(torch.isfinite(w).all() for w in state["state_dict"].values())
        moments = [v for s in state["optimizer_states"][0]["state"].values() for v in s.values()]
        assert moments
        assert all(torch.isfinite(m).all() for m in moments)


def test_a_huge_rate_stops_the_run(tmp_path: Path) -> None:
    subject = make_gpt2()
    module = make_module("e2e_ds", subject, optimizer=make_optimizer(lr=1e30), max_steps=30, log_every=10)
    with pytest.raises(NonFiniteLossError, match=r"at step \d;.*optimizer\.lr"):
        run_fit(module, draw_token_batches(subject, n=30), checkpoints=tmp_path, checkpoint_every=5)
    for path in tmp_path.iterdir():
        assert all(torch.isfinite(w).all() for w in torch.load(path, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_ctrl_c_stays_a_keyboard_interrupt_and_keeps_the_checkpoint(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would turn KeyboardInterrupt into SystemExit(1); SIGTERM's SystemExit and other errors are not changed either."""
    subject = make_gpt2()
    module = make_module("e2e", subject)

    def stop_in_the_fourth_step(batch: Tensor, batch_idx: int) -> None:
        if batch_idx == 3:
            raise error

    monkeypatch.setattr(module, "on_train_batch_start", stop_in_the_fourth_step)
    with pytest.raises(error) as caught:
        run_fit(module, draw_token_batches(subject, n=6), checkpoints=tmp_path, checkpoint_every=2)
    assert caught.type is error
    assert checkpoint_step(tmp_path / "last.ckpt") == 2


def test_a_decoder_bias_starts_at_the_mean_and_normalisation_at_unit_scale(tmp_path: Path) -> None:
    """On average ‖s·x‖ is √d_model, and x̂ is the mean activation if all codes are zero."""
    from crux.sae.build import build_sae
    from crux.sae.evaluation.typical_activation import measure_typical_activation
    from tests.support.sae_jobs import compose_sae_job

    subject = make_gpt2()
    tokens = draw_token_batches(subject, n=3)
    typical = measure_typical_activation(subject, hook=HOOK, batches=tokens)
    x = subject.clean(torch.cat(tokens), capture=[HOOK]).activations[HOOK].flatten(0, 1)
    torch.testing.assert_close(typical.mean, x.mean(0))
    for normalize in (False, True):
        config = compose_sae_job(f"sae.normalize_activations={str(normalize).lower()}", "sae.n_latents=8")
        sae = build_sae(config.sae, read=typical, written=typical, seed=0)
        torch.testing.assert_close(sae.b_dec / sae.input_scale, x.mean(0))
        scale = subject.d_model**0.5 / float(x.norm(dim=-1).mean()) if normalize else 1.0
        assert float(sae.input_scale) == pytest.approx(scale, rel=1e-5)
        folded = sae.fold()
        torch.testing.assert_close(folded(x), sae(x))
        silent = Codes(torch.zeros(len(x), 8), sae.encode(x).pre)
        torch.testing.assert_close(folded.decode(silent), x.mean(0).expand_as(x))


@pytest.mark.parametrize("norm", [0.0, 1e-310, float("nan"), float("inf")])
def test_an_activation_that_cannot_be_normalised_is_a_user_error(norm: float) -> None:
    """A zeroed network has activations of norm 0."""
    from crux.sae.build import build_sae
    from crux.sae.evaluation.typical_activation import TypicalActivation
    from tests.support.sae_jobs import compose_sae_job

    typical = TypicalActivation(torch.zeros(8), norm)
    config = compose_sae_job("sae.normalize_activations=true", "sae.n_latents=8")
    with pytest.raises(UserError, match=r"^sae\.normalize_activations=true: the mean norm of the activation is "):
        build_sae(config.sae, read=typical, written=typical, seed=0)
