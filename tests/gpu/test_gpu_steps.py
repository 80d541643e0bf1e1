"""One training step on CUDA: the same losses and gradients as on the CPU, and no wait for the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from crux.sae.architectures.options import Auxk
from crux.sae.architectures.site import Site
from crux.sae.training.non_finite import NonFiniteLossError
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Steering
from crux.subjects.subject import Subject
from crux.training.devices import Hardware
from tests.support.architectures import ARCHITECTURES, make_arguments
from tests.support.cuda import (
    BFLOAT16,
    DEVICE,
    FLOAT32,
    assert_equal_up_to_rounding,
    forbid_waits,
    subject_dtype,
)
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

pytestmark = pytest.mark.gpu

AUXK = Auxk(0.1, None, 24)
"""AuxK for latents that have not fired on the last 24 tokens, which is one batch."""


def make_subject() -> Subject:
    """Return a random GPT-2 on the CPU that is large enough for products with many terms."""
    return make_gpt2(d_model=64, n_heads=4, d_vocab=512, n_ctx=64)


def make_site(architecture: str, subject: Subject) -> Site:
    """Return an SAE with 256 latents."""
    arguments = make_arguments(d_model=subject.d_model, n_latents=256, subtract_b_dec=True)
    return Site(HOOK, HOOK, ARCHITECTURES[architecture](arguments))


def skipped_positions(architecture: str) -> tuple[int, ...]:
    """Return positions that the loss leaves out; an architecture that selects over the batch can leave out none."""
    return () if architecture in ("batch_topk", "matryoshka") else (0, 2)


def label_without_generator(q: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return labels that are the same on every device, unlike drawn ones."""
    return torch.arange(len(q), device=q.device) % q.shape[-1]


def take_one_step(architecture: str, loss: Loss, device: torch.device) -> tuple[SAEModule, Tensor]:
    """Compute the loss of one batch and its gradients."""
    subject = make_subject()
    tokens = draw_token_batches(subject, n=2, batch=4, pos=48)
    site = make_site(architecture, subject)
    subject.to(device=device)
    skip = skipped_positions(architecture)
    module = make_module(loss, subject, sites=[site], skip_positions=skip, auxk=AUXK, target="data").to(device)
    source = make_training_batches(loss, subject, [t.to(device) for t in tokens], sites=[site], group=1)
    site.sae.advance(0.5)  # p of p-annealing is below 1
    total = module.training_step(source[0], 0)
    total.backward()
    return module, total


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_those_of_the_cpu(
    architecture: str, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crux.sae.losses.label.draw_labels", label_without_generator)
    expected_module, expected = take_one_step(architecture, loss, torch.device("cpu"))
    module, total = take_one_step(architecture, loss, DEVICE)
    assert_equal_up_to_rounding(total, expected, "loss")
    for name, value in module.row.sums.items():
        assert_equal_up_to_rounding(value, expected_module.row.sums[name], name)
    gradients = {name: p.grad for name, p in module.saes.named_parameters()}
    for name, p in expected_module.saes.named_parameters():
        actual = gradients[name]
        assert (actual is None) == (p.grad is None), name
        if actual is not None and p.grad is not None:
            assert_equal_up_to_rounding(actual, p.grad, f"gradient of {name}")
    for name, buffer in expected_module.named_buffers():
        if buffer.is_floating_point():
            assert_equal_up_to_rounding(module.get_buffer(name), buffer, name)
        else:
            assert torch.equal(module.get_buffer(name).cpu(), buffer), name


class ForbidWaits(L.Callback):
    """Forbids waits from the start of one batch until the start of the next one."""

    def __init__(self, batch: int) -> None:
        self.batch, self.forbidden, self.steps = batch, forbid_waits(), 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            self.forbidden.__enter__()
        elif batch_idx == self.batch + 1:
            self.forbidden.__exit__(None, None, None)
            self.steps += 1

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")


def test_a_wait_is_an_error_while_waits_are_forbidden() -> None:
    x = torch.arange(4.0, device=DEVICE)
    for wait in (lambda: x.sum().item(), lambda: x[x > 1], lambda: torch.ones(3).to(DEVICE)):
        with forbid_waits(), pytest.raises(RuntimeError, match="synchroniz"):
            wait()


def train_without_waits(
    module: SAEModule, source: Sequence[Any], *, hardware: Hardware, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train six steps, of which the fourth must not wait, until the next batch has been taken from the source."""
    watch = ForbidWaits(3)
    rows = SAEModule.configure_callbacks(module)
    monkeypatch.setattr(module, "configure_callbacks", lambda: [*rows, watch])
    run_fit(module, source, checkpoints=folder, hardware=hardware)
    assert watch.steps == 1


@pytest.mark.parametrize("hardware", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_step_waits_for_the_device(
    architecture: str, loss: Loss, hardware: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward, clipping, optimiser and schedule; at the fifth step a new group of activations is computed."""
    subject = make_subject().to(device=DEVICE, dtype=subject_dtype(hardware))
    site = make_site(architecture, subject)
    steering = Steering(4, 6) if architecture in ("relu", "jumprelu", "gated", "p_anneal") else None
    module = make_module(
        loss, subject, sites=[site], log_every=100, skip_positions=skipped_positions(architecture), auxk=AUXK,
        steering=steering, target="sampled",
    )  # fmt: skip
    tokens = draw_token_batches(subject, n=6, batch=4, pos=48)
    source = make_training_batches(loss, subject, tokens, sites=[site], group=2, target="sampled")
    train_without_waits(module, source, hardware=hardware, folder=tmp_path, monkeypatch=monkeypatch)


@pytest.mark.parametrize("loss", LOSSES)
def test_many_saes_at_once_do_not_wait_and_one_may_fail(
    loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the second SAE is infinite from the first step, which is noticed at the end."""
    subject = make_subject().to(device=DEVICE)
    sites = [Site(HOOK, HOOK, make_sae(subject)) for _ in range(3)]
    names = ("a", "b", "c")
    module = make_module(
        loss, subject, sites=sites, sparsity=[0.1, 1e38, 1.0], runs=names, log_every=100, max_norm=1e3, auxk=AUXK
    )
    source = make_training_batches(loss, subject, draw_token_batches(subject, n=6), group=2)
    train_without_waits(module, source, hardware=FLOAT32, folder=tmp_path, monkeypatch=monkeypatch)
    assert module.failed == {"b": 1}
    assert all(bool(p.isfinite().all()) for p in module.saes.parameters())


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path: Path) -> None:
    subject = make_subject().to(device=DEVICE)
    module = make_module("e2e", subject, optimizer=make_optimizer(lr=1e38), log_every=3)
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        run_fit(module, draw_token_batches(subject, n=6), checkpoints=tmp_path, hardware=FLOAT32, checkpoint_every=2)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("hardware", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds", "fisher"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_improves_and_stays_finite(architecture: str, loss: Loss, hardware: Hardware, tmp_path: Path) -> None:
    """Twenty steps on one batch; the weights and the optimiser's state stay in float32."""
    subject = make_subject().to(device=DEVICE, dtype=subject_dtype(hardware))
    site = make_site(architecture, subject)
    module = make_module(loss, subject, sites=[site], max_steps=20, target="data", optimizer=make_optimizer(lr=1e-2))
    tokens = 20 * draw_token_batches(subject, n=1, batch=4, pos=48)
    rows: list[dict[str, float]] = []
    source = make_training_batches(loss, subject, tokens, sites=[site], group=1)
    run_fit(module, source, checkpoints=tmp_path, sinks=[lambda step, row: rows.append(row)], hardware=hardware)
    losses = torch.tensor([row["train/loss"] for row in rows])
    assert losses.isfinite().all()
    if loss != "fisher":  # its labels are drawn anew in each step
        assert losses[-1] < 0.9 * losses[0]
    (optimizer,) = [module.trainer.optimizers[0]]
    assert optimizer.param_groups[0]["fused"]
    for p in module.saes.parameters():
        assert p.dtype is torch.float32
        assert bool(p.isfinite().all())
    if architecture in ("topk", "gradient_topk", "batch_topk", "matryoshka"):
        assert rows[-1]["train/l0"] <= 4 * 1.1  # bfloat16 has ties, all of which batch_topk keeps
