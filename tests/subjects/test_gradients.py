"""The clean pass with gradients: compared with finite differences and the spliced pass, and its cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crux.config.errors import UserError
from crux.subjects.hooks import hook_names, sort_hooks
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject
from tests.support.tiny_subjects import CONFIGS, D_MODEL, N_LAYERS, TOKENS, logits


@pytest.fixture(params=CONFIGS)
def subject(request: pytest.FixtureRequest, subject_folder: Callable[[str], Path]) -> Subject:
    return load_subject(subject_folder(request.param), process_weights=False, dtype=torch.float64)


@pytest.fixture
def gpt2(subject_folder: Callable[[str], Path]) -> Subject:
    return load_subject(subject_folder("gpt2"), process_weights=False)


def cross_entropy(subject: Subject) -> Callable[[Tensor], Tensor]:
    """Return a loss: the next-token cross-entropy summed over TOKENS."""

    def loss(final: Tensor) -> Tensor:
        z = logits(subject.unembed, final[:, :-1])
        return torch.nn.functional.cross_entropy(z.flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum")

    return loss


def list_hooks(subject: Subject) -> list[str]:
    return hook_names(N_LAYERS, resid_mid=not subject.parts.parallel)


def test_finite_differences_at_every_hook(subject: Subject) -> None:
    loss, hooks = cross_entropy(subject), list_hooks(subject)
    clean, gradients = subject.clean_with_gradients(TOKENS, gradient_hooks=hooks, loss=loss)
    assert list(gradients) == list(clean.activations) == hooks
    generator = torch.Generator().manual_seed(2)
    # Hugging Face's RMSNorm computes in float32 for any input, so that finite differences need larger steps
    eps, tolerance = (1e-5, 1e-6) if isinstance(subject.parts.final_norm, nn.LayerNorm) else (1e-3, 3e-3)
    steps = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64) * eps
    weights = torch.tensor([8.0, -8.0, -1.0, 1.0], dtype=torch.float64) / (12 * eps)  # the error is of fourth order
    for name, gradient in gradients.items():
        x = clean.activations[name]
        assert gradient.shape == x.shape
        assert gradient.dtype == x.dtype
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        with torch.no_grad():
            moved = [loss(subject.spliced(clean, {name: lambda a, d=step * direction: a + d}).final) for step in steps]
        difference = torch.stack(moved).double() @ weights
        error = ((gradient * direction).sum() - difference).abs() / gradient.norm()
        assert error < tolerance, f"{name}: the difference is {error:.1e} of the gradient's norm"


def test_one_hook_at_a_time_all_hooks_and_the_spliced_pass_agree(subject: Subject) -> None:
    loss, hooks = cross_entropy(subject), list_hooks(subject)
    together = subject.clean_with_gradients(TOKENS, gradient_hooks=hooks, loss=loss)[1]
    for name in hooks:
        clean, single = subject.clean_with_gradients(TOKENS, gradient_hooks=[name], loss=loss)
        x = clean.activations[name].clone().requires_grad_()
        (truth,) = torch.autograd.grad(loss(subject.spliced(clean, {name: lambda _, x=x: x}).final), x)
        assert truth.abs().max() > 1e-3  # not trivially equal
        torch.testing.assert_close(single, {name: truth}, rtol=0, atol=0)
        torch.testing.assert_close(together[name], truth, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["z", "mlp_out"])
def test_clean_pass_is_the_same_as_without_gradients(subject: Subject, kind: str) -> None:
    """They agree bit for bit in float32, and a spliced pass can start from any captured hook point."""
    subject.to(dtype=torch.float32)
    hooks = list_hooks(subject)
    gradient_hooks = ["blocks.1.attn.hook_z" if kind == "z" else f"blocks.1.hook_{kind}"]
    clean, gradients = subject.clean_with_gradients(
        TOKENS, gradient_hooks=gradient_hooks, loss=cross_entropy(subject), capture=hooks
    )
    want = subject.clean(TOKENS, capture=hooks)
    torch.testing.assert_close(clean.activations, want.activations, rtol=0, atol=0)
    torch.testing.assert_close(clean.final, want.final, rtol=0, atol=0)
    torch.testing.assert_close(clean.replay.carried, want.replay.carried, rtol=0, atol=0)
    assert clean.final is not None
    carried = [x for xs in clean.replay.carried.values() for x in xs]
    assert not any(x.requires_grad for x in (*clean.activations.values(), clean.final, *carried, *gradients.values()))
    assert all(p.grad is None and not p.requires_grad for p in subject.model.parameters())
    for name in hooks:
        torch.testing.assert_close(
            subject.spliced(clean, {name: torch.tanh}).final, subject.spliced(want, {name: torch.tanh}).final
        )


def test_gradient_hooks_are_captured_too(gpt2: Subject) -> None:
    gradient_hooks, also = ["blocks.2.hook_mlp_out", "blocks.1.hook_resid_pre"], "blocks.0.attn.hook_z"
    clean, gradients = gpt2.clean_with_gradients(TOKENS, gradient_hooks=gradient_hooks, loss=Tensor.sum, capture=[also])
    assert list(clean.activations) == sort_hooks([*gradient_hooks, also])
    assert list(gradients) == sort_hooks(gradient_hooks)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_under_any_gradient_mode(gpt2: Subject, mode: Callable[[], Any]) -> None:
    gradient_hooks = ["blocks.1.hook_resid_pre"]
    want = gpt2.clean_with_gradients(TOKENS, gradient_hooks=gradient_hooks, loss=cross_entropy(gpt2))[1]
    gpt2._arguments.clear()  # so that the attention arguments are computed under this mode
    with mode():
        before = torch.is_grad_enabled()
        tokens = TOKENS.clone()
        clean, gradients = gpt2.clean_with_gradients(tokens, gradient_hooks=gradient_hooks, loss=cross_entropy(gpt2))
        assert torch.is_grad_enabled() == before
    torch.testing.assert_close(gradients, want, rtol=0, atol=0)
    scale = torch.ones(D_MODEL, requires_grad=True)
    gpt2.spliced(clean, {gradient_hooks[0]: lambda x: x * scale}).final.sum().backward()
    assert scale.grad is not None


def test_graph_outside_the_call_is_not_changed(gpt2: Subject) -> None:
    weight = torch.ones(D_MODEL, requires_grad=True)
    before = (weight * 2).sum()
    hook = "blocks.1.hook_resid_pre"
    _, gradients = gpt2.clean_with_gradients(TOKENS, gradient_hooks=[hook], loss=lambda final: (final * weight).sum())
    assert weight.grad is None
    (before + (gradients[hook] * weight).sum()).backward()
    torch.testing.assert_close(weight.grad, 2 + gradients[hook].sum((0, 1)))


def test_a_loss_in_bfloat16(gpt2: Subject) -> None:
    hook = "blocks.1.attn.hook_z"
    want = gpt2.clean_with_gradients(TOKENS, gradient_hooks=[hook], loss=cross_entropy(gpt2))[1][hook]
    gpt2.to(dtype=torch.bfloat16)
    loss = cross_entropy(gpt2)
    gradient = gpt2.clean_with_gradients(TOKENS, gradient_hooks=[hook], loss=lambda final: loss(final).float())[1][hook]
    assert gradient.dtype == torch.bfloat16
    assert (gradient.float() - want).norm() < 0.1 * want.norm()


def test_error_messages(gpt2: Subject) -> None:
    with pytest.raises(UserError, match=r"no hook point given at which to take the gradient$"):
        gpt2.clean_with_gradients(TOKENS, gradient_hooks=[], loss=Tensor.sum)
    with pytest.raises(UserError, match=r"nearest are blocks\.1\.attn\.hook_z"):
        gpt2.clean_with_gradients(TOKENS, gradient_hooks=["blocks.1.hook_z"], loss=Tensor.sum)


def _count_product_flops(q: torch.Size, k: torch.Size) -> int:
    """Return the operations of one matrix product of attention, such as q kᵀ, for all heads."""
    batch, heads, n_query, d_head = q
    return 2 * batch * heads * n_query * k[2] * d_head


_ATTENTION_FLOPS = {  # two matrix products forward and five backward; torch counts none on the CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 2 * _count_product_flops(q, k),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, *__, **___: (
        5 * _count_product_flops(q, k)
    ),
}


def _count_flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION_FLOPS) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("also", [[], ["blocks.2.hook_resid_pre", "blocks.2.attn.hook_z", "blocks.2.hook_resid_post"]])
def test_gradient_costs_one_backward_pass_of_the_suffix_without_weight_gradients(
    gpt2: Subject, also: list[str]
) -> None:
    """A linear map costs as much backward as forward, because no gradient of its weights is computed.

    Gradient hooks after the first one (`also`) cost nothing.
    """
    batch, pos = TOKENS.shape
    n = batch * pos
    # a map from width a to b costs 2 n a b; the MLP has two maps between D_MODEL and 4 D_MODEL
    out, mlp, attention = 2 * n * D_MODEL**2, 2 * n * 8 * D_MODEL**2, 2 * n * pos * D_MODEL
    qkv = 3 * out
    whole = qkv + 5 * attention + out + mlp  # the backward pass of one block
    for hook, suffix in [
        ("blocks.0.hook_resid_pre", 3 * whole),
        ("blocks.1.hook_resid_pre", 2 * whole),
        ("blocks.1.attn.hook_z", out + mlp + whole),
        ("blocks.1.hook_attn_out", mlp + whole),
        ("blocks.1.hook_resid_mid", mlp + whole),
        ("blocks.1.hook_mlp_out", whole),
        ("blocks.1.hook_resid_post", whole),
    ]:
        clean = _count_flops(lambda: gpt2.clean(TOKENS, capture=[]))
        assert clean == 3 * (qkv + 2 * attention + out + mlp)
        with_gradient = _count_flops(
            lambda hook=hook: gpt2.clean_with_gradients(TOKENS, gradient_hooks=[hook, *also], loss=Tensor.sum)
        )
        assert with_gradient - clean == suffix, hook
