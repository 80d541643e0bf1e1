"""The step's arithmetic against the analytic minimum (design.md §5), at the packaged model's shape.

Counted are the matrix products. Attention counts the whole T × T square, causal or not, in the count and in the formula
alike: 2 products forward, and 2.5 times that backward (5 products).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import Loss, gpt2, module_for, sae_for, token_batches
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from crux.subjects.subject import Subject
from crux.training.data import ShuffledActivations

L, D, V, T, BATCH, N_LATENTS = 8, 128, 2048, 256, 2, 2048  # the packaged model, sae.ratio=16
N = BATCH * T


def attention(q: torch.Size, k: torch.Size) -> int:
    batch, heads, n_query, d_head = q
    return 2 * 2 * batch * heads * n_query * k[2] * d_head


def attention_forward(q: torch.Size, k: torch.Size, *rest: Any, **options: Any) -> int:
    return attention(q, k)


def attention_backward(gradient: torch.Size, q: torch.Size, k: torch.Size, *rest: Any, **options: Any) -> int:
    return attention(q, k) * 5 // 2


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def subject() -> Subject:
    return gpt2(n_layers=L, d_model=D, n_heads=4, d_vocab=V, n_ctx=T)


LINEAR = 2 * N * D * (3 * D + D + 4 * D + 4 * D)  # a block's: q, k, v; output; MLP in; MLP out
ATTENTION = 2 * 2 * N * T * D
READ_OUT = 2 * N * D * V
DICTIONARY = 2 * N * D * N_LATENTS


def end_to_end_minimum(layer: int) -> int:
    """Clean pass; spliced suffix; backward of it towards activations alone; three d·V and five d·F products."""
    forward = LINEAR + ATTENTION
    backward = LINEAR + ATTENTION * 5 // 2
    return L * forward + (L - layer) * (forward + backward) + 3 * READ_OUT + 5 * DICTIONARY


def local_minimum(layer: int) -> int:
    """The prefix; five d·F products: encode, decode, and backward both weights and the codes, not the input."""
    return layer * (LINEAR + ATTENTION) + 5 * DICTIONARY


def test_the_counter_counts_attention(subject: Subject) -> None:
    """Without the mapping it would count none on the CPU."""
    hook = "blocks.1.hook_resid_pre"
    tokens = token_batches(subject, n=1, batch=BATCH, pos=T)[0]
    assert flops(lambda: subject.clean(tokens, capture=[hook], final=False)) == LINEAR + ATTENTION


@pytest.mark.parametrize("layer", [2, 6])
@pytest.mark.parametrize("loss", ["e2e", "e2e_ds"])
def test_the_end_to_end_step_is_the_analytic_minimum(subject: Subject, loss: Loss, layer: int) -> None:
    sae = sae_for(subject, n_latents=N_LATENTS)
    module = module_for(loss, subject, sae=sae, hook=f"blocks.{layer}.hook_resid_pre")
    tokens = token_batches(subject, n=1, batch=BATCH, pos=T)[0]
    ratio = flops(lambda: module.training_step(tokens, 0).backward()) / end_to_end_minimum(layer)
    print(f"{loss} layer {layer}: {ratio:.5f} of the minimum")
    assert 1.0 <= ratio <= 1.02


@pytest.mark.parametrize("layer", [2, 6])
def test_the_local_step_is_the_analytic_minimum(subject: Subject, layer: int) -> None:
    group, hook = 2, f"blocks.{layer}.hook_resid_pre"
    module = module_for("local", subject, sae=sae_for(subject, n_latents=N_LATENTS))
    tokens = token_batches(subject, n=group, batch=BATCH, pos=T)
    source = ShuffledActivations(tokens, subject=subject, hook=hook, group=group, seed=0, skip_positions=())

    def steps() -> None:
        for i in range(group):
            batch: Tensor = source[i]
            assert len(batch) == N
            module.training_step(batch, i).backward()

    ratio = flops(steps) / (group * local_minimum(layer))
    print(f"local layer {layer}: {ratio:.5f} of the minimum")
    assert 1.0 <= ratio <= 1.02
