"""The step's arithmetic against the analytic minimum (docs/architecture.md §5), at the packaged model's shape.

Counted are the matrix products. Attention counts the whole T × T square, causal or not, in the count and in the formula
alike: 2 products forward, and 2.5 times that backward (5 products).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from tests.support.architectures import base
from tests.support.sae_jobs import ROOT
from tests.support.small_runs import Loss, gpt2, module_for, sae_for, source_for, token_batches
from torch.utils.flop_counter import FlopCounterMode

from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.architectures.topk import TopKSAE
from crux.subjects.subject import Subject

L, D, V, T, BATCH, N_LATENTS = 8, 128, 2048, 256, 2, 2048  # the packaged model, sae.ratio=16
GROUP = 2
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
FORWARD = LINEAR + ATTENTION  # a block's
BACKWARD = LINEAR + ATTENTION * 5 // 2  # towards activations alone


def end_to_end_minimum(layer: int) -> int:
    """Clean pass; spliced suffix; backward of it towards activations alone; three d·V and five d·F products."""
    return L * FORWARD + (L - layer) * (FORWARD + BACKWARD) + 3 * READ_OUT + 5 * DICTIONARY


def local_minimum(layer: int) -> int:
    """The prefix; five d·F products: encode, decode, and backward both weights and the codes, not the input."""
    return layer * FORWARD + 5 * DICTIONARY


def gradient_minimum(loss: Loss, layer: int) -> int:
    """What g costs: a backward pass of the clean suffix, two d·V products, and one d·F for the scores.

    End to end the suffix has run forward anyway.
    """
    forward = (L - layer) * FORWARD if loss == "local" else 0
    return forward + (L - layer) * BACKWARD + 2 * READ_OUT + DICTIONARY


def fisher_minimum(layer: int) -> int:
    """Clean pass, backward of its suffix, two d·V products; the local SAE's five of d·F."""
    return L * FORWARD + (L - layer) * BACKWARD + 2 * READ_OUT + 5 * DICTIONARY


def many_minimum(loss: Loss, layer: int, *, n: int) -> int:
    """Of n SAEs at one place: the clean pass and its logits once, the rest for each."""
    if loss == "local":
        return layer * FORWARD + n * 5 * DICTIONARY
    if loss == "fisher":
        return fisher_minimum(layer) + (n - 1) * 5 * DICTIONARY
    return L * FORWARD + n * (L - layer) * (FORWARD + BACKWARD) + (1 + 2 * n) * READ_OUT + n * 5 * DICTIONARY


def minimum(loss: Loss, layer: int) -> int:
    match loss:
        case "local":
            return local_minimum(layer)
        case "fisher":
            return fisher_minimum(layer)
        case _:
            return end_to_end_minimum(layer)


def step_flops(subject: Subject, loss: Loss, *saes: SAE, layer: int) -> float:
    """A training step's, its share of the filling of the buffer included; of several SAEs each is a run."""
    hook = f"blocks.{layer}.hook_resid_pre"
    sites = [Site(hook, hook, sae) for sae in saes]
    runs = [str(i) for i in range(len(saes))] if len(saes) > 1 else []
    module = module_for(loss, subject, sites=sites, runs=runs)
    batches = source_for(loss, subject, token_batches(subject, n=GROUP, batch=BATCH, pos=T), group=GROUP, sites=sites)

    def steps() -> None:
        for i in range(GROUP):
            module.training_step(batches[i], i).backward()

    return flops(steps) / GROUP


def topk() -> TopKSAE:
    return TopKSAE(**base(d_model=D, n_latents=N_LATENTS, subtract_b_dec=True), k=32)


def gradient_topk() -> GradientTopKSAE:
    return GradientTopKSAE(**base(d_model=D, n_latents=N_LATENTS, subtract_b_dec=True), k=32, beta=1.0)


def test_the_counter_counts_attention(subject: Subject) -> None:
    """Without the mapping it would count none on the CPU."""
    hook = "blocks.1.hook_resid_pre"
    tokens = token_batches(subject, n=1, batch=BATCH, pos=T)[0]
    assert flops(lambda: subject.clean(tokens, capture=[hook], final=False)) == LINEAR + ATTENTION


@pytest.mark.parametrize("layer", [2, 6])
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds", "fisher"])
def test_a_step_is_the_analytic_minimum(subject: Subject, loss: Loss, layer: int) -> None:
    found = step_flops(subject, loss, sae_for(subject, n_latents=N_LATENTS), layer=layer)
    ratio = found / minimum(loss, layer)
    print(f"{loss} layer {layer}: {ratio:.5f} of the minimum")
    assert 1.0 <= ratio <= 1.02


@pytest.mark.parametrize("layer", [2, 6])
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds"])
def test_a_gradient_sae_costs_one_backward_pass_more_than_topk(subject: Subject, loss: Loss, layer: int) -> None:
    """TopK itself has five d·F products, as the choice is none and b_dec's way through the encoder is none over tokens."""
    plain = step_flops(subject, loss, topk(), layer=layer)
    assert 1.0 <= plain / minimum(loss, layer) <= 1.02
    whole = step_flops(subject, loss, gradient_topk(), layer=layer)
    ratio = (whole - plain) / gradient_minimum(loss, layer)
    print(f"{loss} layer {layer}: g costs {ratio:.5f} of its minimum; a step {whole / plain:.3f} of TopK's")
    assert 0.98 <= ratio <= 1.02  # the text's last tokens have no label: a little less than two d·V


@pytest.mark.parametrize("layer", [2, 6])
@pytest.mark.parametrize("sae", ["relu", "topk"])
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds", "fisher"])
def test_many_saes_cost_the_clean_pass_once(subject: Subject, loss: Loss, sae: str, layer: int) -> None:
    n = 4
    saes = [topk() if sae == "topk" else sae_for(subject, n_latents=N_LATENTS) for _ in range(n)]
    found = step_flops(subject, loss, *saes, layer=layer)
    ratio, alone = found / many_minimum(loss, layer, n=n), n * minimum(loss, layer)
    print(f"{loss} {sae} layer {layer}: {ratio:.5f} of the minimum, {found / alone:.3f} of {n} runs alone")
    assert 1.0 <= ratio <= 1.02


def test_equal_compute_is_what_the_sweep_gives(subject: Subject) -> None:
    """`sweeps=losses` gives TopK as many more steps as a step of g-SAE costs."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "losses.yaml").read_text("utf-8"))
    of_both = sweep["trainer"]["max_steps"]
    longer = {g["loss"]: g["trainer.max_steps"] for g in sweep["hydra"]["sweeper"]["grids"] if "trainer.max_steps" in g}
    assert longer.keys() == {"local", "e2e"}
    for loss, steps in longer.items():
        found = step_flops(subject, loss, gradient_topk(), layer=6) / step_flops(subject, loss, topk(), layer=6)
        assert steps / of_both == pytest.approx(found, rel=0.01), loss
