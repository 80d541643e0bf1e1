"""The arithmetic of a training step, compared with the analytic minimum (docs/architecture.md §5), for the packaged model.

Matrix products are counted. Attention counts as the whole T × T square, causal or not, both in the count and in the formula:
2 products forward, and 2.5 times that backward (5 products).
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.architectures.topk import TopKSAE
from crux.subjects.subject import Subject
from tests.support.architectures import make_arguments
from tests.support.sae_jobs import ROOT
from tests.support.small_runs import Loss, draw_token_batches, make_gpt2, make_module, make_sae, make_training_batches

L, D, V, T, BATCH, N_LATENTS = 8, 128, 2048, 256, 2, 2048  # the packaged model, sae.ratio=16
GROUP = 2
N = BATCH * T  # tokens


def count_attention(q: torch.Size, k: torch.Size) -> int:
    batch, heads, n_query, d_head = q
    return 2 * 2 * batch * heads * n_query * k[2] * d_head


def attention_forward(q: torch.Size, k: torch.Size, *rest: Any, **options: Any) -> int:
    return count_attention(q, k)


def attention_backward(gradient: torch.Size, q: torch.Size, k: torch.Size, *rest: Any, **options: Any) -> int:
    return count_attention(q, k) * 5 // 2


def sum_of_rows(rows: torch.Size, indices: torch.Size, *rest: Any, **options: Any) -> int:
    """Count a sum of weighted rows: a multiplication and an addition per element of each row."""
    return 2 * indices[0] * rows[1]


def products_with_rows(gradient: torch.Size, rows: torch.Size, indices: torch.Size, *rest: Any, **options: Any) -> int:
    """Count the gradient to the weights of such a sum: one scalar product per row."""
    return sum_of_rows(rows, indices)


UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    torch.ops.aten._embedding_bag: sum_of_rows,
    torch.ops.aten._embedding_bag_forward_only: sum_of_rows,
    torch.ops.aten._embedding_bag_per_sample_weights_backward: products_with_rows,
}
"""Functions that count the operations of kernels which torch's counter does not know."""


def count_flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_gpt2(n_layers=L, d_model=D, n_heads=4, d_vocab=V, n_ctx=T)


LINEAR = 2 * N * D * (3 * D + D + 4 * D + 4 * D)  # linear maps of a block: q, k, v; output; MLP in; MLP out
ATTENTION = 2 * 2 * N * T * D
READ_OUT = 2 * N * D * V
DICTIONARY = 2 * N * D * N_LATENTS
K = 32
DENSE, SPARSE = 5 * DICTIONARY, DICTIONARY + 4 * 2 * N * D * K
"""The products of an SAE: encode, decode, and the gradients of both weights and the codes. Of sparse codes, only the first is dense."""
FORWARD = LINEAR + ATTENTION  # of one block
BACKWARD = LINEAR + ATTENTION * 5 // 2  # only to activations


def end_to_end_minimum(layer: int, sae: int) -> int:
    """Return the minimum: clean pass, spliced suffix, its backward pass to activations, three d·V products, and those of the SAE."""
    return L * FORWARD + (L - layer) * (FORWARD + BACKWARD) + 3 * READ_OUT + sae


def local_minimum(layer: int, sae: int) -> int:
    """Return the minimum: the prefix, and the products of the SAE."""
    return layer * FORWARD + sae


def gradient_minimum(loss: Loss, layer: int) -> int:
    """Return the cost of g: a backward pass of the clean suffix, two d·V products, and one d·F product for the scores.

    In an end-to-end loss the forward pass of the suffix is needed anyway.
    """
    forward = (L - layer) * FORWARD if loss == "local" else 0
    return forward + (L - layer) * BACKWARD + 2 * READ_OUT + DICTIONARY


def fisher_minimum(layer: int, sae: int) -> int:
    """Return the minimum: clean pass, backward pass of its suffix, two d·V products, and those of the SAE, as for local SAEs."""
    return L * FORWARD + (L - layer) * BACKWARD + 2 * READ_OUT + sae


def many_minimum(loss: Loss, layer: int, sae: int, *, n: int) -> int:
    """Return the minimum for n SAEs at one hook point: the clean pass and its logits once, the rest for each SAE."""
    if loss == "local":
        return layer * FORWARD + n * sae
    if loss == "fisher":
        return fisher_minimum(layer, sae) + (n - 1) * sae
    return L * FORWARD + n * (L - layer) * (FORWARD + BACKWARD) + (1 + 2 * n) * READ_OUT + n * sae


def minimum(loss: Loss, layer: int, sae: int = DENSE) -> int:
    match loss:
        case "local":
            return local_minimum(layer, sae)
        case "fisher":
            return fisher_minimum(layer, sae)
        case _:
            return end_to_end_minimum(layer, sae)


def count_step_flops(subject: Subject, loss: Loss, *saes: SAE, layer: int) -> float:
    """Count the FLOPs of a training step with its share of filling the buffer; each of several SAEs is a separate run."""
    hook = f"blocks.{layer}.hook_resid_pre"
    sites = [Site(hook, hook, sae) for sae in saes]
    runs = [str(i) for i in range(len(saes))] if len(saes) > 1 else []
    module = make_module(loss, subject, sites=sites, runs=runs)
    batches = make_training_batches(
        loss, subject, draw_token_batches(subject, n=GROUP, batch=BATCH, pos=T), group=GROUP, sites=sites
    )

    def steps() -> None:
        for i in range(GROUP):
            module.training_step(batches[i], i).backward()

    return count_flops(steps) / GROUP


def make_topk() -> TopKSAE:
    return TopKSAE(**make_arguments(d_model=D, n_latents=N_LATENTS, subtract_b_dec=True), k=K)


def make_gradient_topk() -> GradientTopKSAE:
    return GradientTopKSAE(**make_arguments(d_model=D, n_latents=N_LATENTS, subtract_b_dec=True), k=K, beta=1.0)


def test_the_counter_counts_attention(subject: Subject) -> None:
    """The counter needs a mapping for the attention operation on the CPU, which it would otherwise ignore."""
    hook = "blocks.1.hook_resid_pre"
    tokens = draw_token_batches(subject, n=1, batch=BATCH, pos=T)[0]
    assert count_flops(lambda: subject.clean(tokens, capture=[hook], final=False)) == LINEAR + ATTENTION


@pytest.mark.parametrize("layer", [2, 6])
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds", "fisher"])
def test_a_step_needs_the_analytic_minimum(subject: Subject, loss: Loss, layer: int) -> None:
    found = count_step_flops(subject, loss, make_sae(subject, n_latents=N_LATENTS), layer=layer)
    ratio = found / minimum(loss, layer)
    print(f"{loss} layer {layer}: {ratio:.5f} of the minimum")
    assert 1.0 <= ratio <= 1.02


@pytest.mark.parametrize("layer", [2, 6])
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds"])
def test_a_gradient_sae_costs_one_backward_pass_more_than_topk(subject: Subject, loss: Loss, layer: int) -> None:
    """TopK has one d·F product: neither the selection nor the product of b_dec with the encoder needs one over tokens."""
    plain = count_step_flops(subject, loss, make_topk(), layer=layer)
    assert 1.0 <= plain / minimum(loss, layer, SPARSE) <= 1.02
    whole = count_step_flops(subject, loss, make_gradient_topk(), layer=layer)
    ratio = (whole - plain) / gradient_minimum(loss, layer)
    print(f"{loss} layer {layer}: g costs {ratio:.5f} of its minimum; a step {whole / plain:.3f} of TopK's")
    assert 0.98 <= ratio <= 1.02  # the text's last tokens have no label: a little less than two d·V


@pytest.mark.parametrize("layer", [2, 6])
@pytest.mark.parametrize("sae", ["relu", "topk"])
@pytest.mark.parametrize("loss", ["local", "e2e", "e2e_ds", "fisher"])
def test_many_saes_cost_the_clean_pass_once(subject: Subject, loss: Loss, sae: str, layer: int) -> None:
    n = 4
    saes = [make_topk() if sae == "topk" else make_sae(subject, n_latents=N_LATENTS) for _ in range(n)]
    found = count_step_flops(subject, loss, *saes, layer=layer)
    products = SPARSE if sae == "topk" else DENSE
    ratio, separate = found / many_minimum(loss, layer, products, n=n), n * minimum(loss, layer, products)
    print(f"{loss} {sae} layer {layer}: {ratio:.5f} of the minimum, {found / separate:.3f} of {n} separate runs")
    assert 1.0 <= ratio <= 1.02


def test_the_sweep_gives_equal_compute(subject: Subject) -> None:
    """`sweeps=losses` gives TopK more steps, in proportion to the cost of a step of g-SAE."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "losses.yaml").read_text("utf-8"))
    default_steps = sweep["trainer"]["max_steps"]
    longer = {g["loss"]: g["trainer.max_steps"] for g in sweep["hydra"]["sweeper"]["grids"] if "trainer.max_steps" in g}
    assert longer.keys() == {"local", "e2e"}
    for loss, steps in longer.items():
        found = count_step_flops(subject, loss, make_gradient_topk(), layer=6) / count_step_flops(
            subject, loss, make_topk(), layer=6
        )
        assert steps / default_steps == pytest.approx(found, rel=0.01), loss
