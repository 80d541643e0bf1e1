"""Sparse products give the values and gradients of the dense ones, for every architecture."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.sae.architectures import active_codes
from crux.sae.architectures.active_codes import (
    ActiveCodes,
    ActiveIndex,
    decode_active,
    find_largest,
    gather_active,
    index_chosen,
    index_if_sparse,
    index_where,
)
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.sae import SAE
from crux.sae.losses.auxk import auxk_loss
from tests.support.architectures import ARCHITECTURES, draw_normal, make_arguments, perturb_sae

ACTIVE = torch.tensor([[True, False, True], [False, False, False], [True, True, True], [False, True, False]])


def test_an_index_by_hand() -> None:
    index = index_where(ACTIVE)
    assert index.counts.tolist() == [2, 0, 3, 1]
    assert index.latents.tolist() == [0, 2, 0, 1, 2, 1]
    assert index.tokens.tolist() == [0, 0, 2, 2, 2, 3]
    assert index.starts.tolist() == [0, 2, 2, 5]
    order, tokens, starts = index.by_latent
    assert (order.tolist(), tokens.tolist(), starts.tolist()) == ([0, 2, 3, 5, 1, 4], [0, 2, 2, 3, 0, 2], [0, 2, 4])
    values = torch.tensor([1.0, 2, 3, 4, 5, 6])
    assert index.sum_by_token(values).tolist() == [3, 0, 12, 6]
    assert index.sum_by_latent(values).tolist() == [4, 10, 7]
    rows = torch.tensor([[1.0, 0], [0, 1], [10, 10]])
    assert index.sum_rows(values, rows).tolist() == [[21, 20], [0, 0], [53, 54], [0, 6]]
    x = torch.tensor([[1.0, 0], [9, 9], [0, 1], [1, 1]])
    assert index.sum_tokens(values, x).tolist() == [[1, 3], [6, 10], [2, 5]]
    some = index.select(torch.tensor([True, False, False, True, True, False]))
    assert (some.counts.tolist(), some.latents.tolist(), some.tokens.tolist()) == ([1, 0, 2, 0], [0, 1, 2], [0, 2, 2])
    plain = ActiveIndex(index.counts, index.latents, 3)
    assert torch.equal(plain.tokens, index.tokens)


def test_chosen_latents_and_sorting() -> None:
    index = index_chosen(torch.tensor([[2, 0], [1, 2]]), 4)
    active = ActiveCodes(index, torch.tensor([3.0, 1.0, 0.0, 5.0]))
    assert active.dense().tolist() == [[1, 0, 3, 0], [0, 0, 5, 0]]
    tidy = active.sorted()
    assert (tidy.places.counts.tolist(), tidy.places.latents.tolist(), tidy.values.tolist()) == (
        [2, 1],
        [0, 2, 2],
        [1, 3, 5],
    )


@pytest.mark.parametrize(("n", "k"), [(256, 3), (256, 16), (257, 3), (64, 32), (16, 1), (8, 8)])
def test_the_largest_values_are_found(n: int, k: int) -> None:
    values = draw_normal(50, n)
    values[3] = -torch.inf
    values[4, ::2] = -torch.inf
    values[5, : n // 2] = 7.0
    values[6, n // 3] = torch.nan
    largest = find_largest(values, k)
    assert all(len(set(row)) == k for row in largest.tolist())
    kept, expected = values.gather(-1, largest).sort(-1).values, values.topk(k, dim=-1).values.flip(-1)
    torch.testing.assert_close(kept, expected, rtol=0, atol=0, equal_nan=True)


def test_gradients_are_those_of_finite_differences() -> None:
    x, W_dec = draw_normal(4, 5, seed=0).double().requires_grad_(), draw_normal(3, 6, seed=1).double().requires_grad_()
    W_enc, b_enc = draw_normal(5, 3, seed=2).double().requires_grad_(), draw_normal(3, seed=3).double().requires_grad_()

    def reconstruct(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> Tensor:
        index = index_where(ACTIVE)
        pre = gather_active((x @ W_enc + b_enc).detach(), index, x=x, W_enc=W_enc, b_enc=b_enc)
        return decode_active(ActiveCodes(index, pre.square()), W_dec)

    dense = torch.where(ACTIVE, (x @ W_enc + b_enc).square(), 0.0) @ F.normalize(W_dec, dim=-1)
    torch.testing.assert_close(reconstruct(x, W_enc, b_enc, W_dec), dense)
    assert torch.autograd.gradcheck(reconstruct, (x, W_enc, b_enc, W_dec))
    with torch.no_grad():
        torch.testing.assert_close(reconstruct(x, W_enc, b_enc, W_dec), dense)


def test_a_graph_can_be_used_twice_and_a_frozen_decoder_gets_no_gradient() -> None:
    W_dec, values = draw_normal(3, 6), torch.ones(6, requires_grad=True)
    decoded = decode_active(ActiveCodes(index_where(ACTIVE), values), W_dec).sum()
    first, second = (torch.autograd.grad(decoded, values, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_dense_products_are_used_where_they_are_faster() -> None:
    active = torch.zeros(40, 100, dtype=torch.bool)
    assert index_if_sparse(active) is None  # nothing to sum
    active[:, :5] = True
    assert index_if_sparse(active) is not None
    active[0, 5] = True
    assert index_if_sparse(active) is None


def make_sae(name: str, **changed: object) -> SAE:
    return perturb_sae(ARCHITECTURES[name](make_arguments(**changed)))  # pyright: ignore[reportArgumentType]


def list_results(sae: SAE, x: Tensor, side: Tensor) -> tuple[Codes, dict[str, Tensor]]:
    """Return the codes, and everything that a training step computes from them with its gradients."""
    target = draw_normal(len(x), sae.d_out, seed=9).double()
    weight = torch.arange(len(x)).remainder(3).ne(0).double()
    dead = torch.arange(sae.n_latents) % 4 == 1
    codes = sae.encode(x, side)
    reconstruction = sae.decode(codes)
    terms = {
        "mse": (reconstruction - target).square().mean(),
        "penalty": sae.penalty(codes, weight=weight),
        "all_tokens": sae.penalty(codes, weight=None),
        "auxk": auxk_loss(
            codes, sae.W_dec, target - reconstruction, dead=dead, k=3, weight=weight, mean_over_ranks=lambda mean: mean
        ),
    }
    if (auxiliary := sae.auxiliary(codes, target, weight=weight)) is not None:
        terms["auxiliary"] = auxiliary
    firings, n_firing = codes.count_firing()
    results = {"x_hat": reconstruction, "firings": firings, "n_firing": n_firing, "largest": codes.largest()}
    inputs = {"x": x, **dict(sae.named_parameters())}
    for name, term in terms.items():
        results[name] = term
        if not term.requires_grad:  # the penalty of TopK is constant
            continue
        gradients = torch.autograd.grad(term, list(inputs.values()), retain_graph=True, allow_unused=True)
        results |= {
            f"{name} by {key}": torch.zeros_like(inputs[key]) if gradient is None else gradient
            for key, gradient in zip(inputs, gradients, strict=True)
        }
    return codes, results


SHAPES = [(False, None), (True, None), (False, 5)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("subtract_b_dec", "d_out"), SHAPES)
def test_sparse_and_dense_steps_agree(
    name: str, training: bool, subtract_b_dec: bool, d_out: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make_sae(name, subtract_b_dec=subtract_b_dec, d_out=d_out).train(training).double()
    sae.start_at(draw_normal(sae.d_out, seed=5), input_scale=0.7, output_scale=1.3)
    x = (3 * draw_normal(50, 8)).double().requires_grad_()
    side = draw_normal(50, sae.d_out, seed=2).double()
    both = []
    for density in (0.0, 1.0):
        monkeypatch.setattr(active_codes, "MAX_DENSITY", density)
        codes, results = list_results(sae, x, side)
        assert (codes.active is None) == (density == 0)
        both.append((codes.c, results))
    (dense_codes, dense), (sparse_codes, sparse) = both
    torch.testing.assert_close(sparse_codes, dense_codes)
    assert dense.keys() == sparse.keys()
    for key, value in dense.items():
        torch.testing.assert_close(
            sparse[key], value, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}"
        )
    for key in ("mse by W_enc", "mse by W_dec", "mse by x", "auxk by W_enc", "auxk by W_dec"):
        assert bool(dense[key].any()), key


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_flow_through_codes_with_their_zeros(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads `Codes.c` gets the same gradient, however the codes were computed."""
    sae = make_sae(name).train(training).double()
    x, weights = (3 * draw_normal(50, 8)).double(), draw_normal(50, 24, seed=4).double()
    gradients = []
    for density in (0.0, 1.0):
        monkeypatch.setattr(active_codes, "MAX_DENSITY", density)
        gradients.append(torch.autograd.grad((sae.encode(x).c * weights).sum(), [sae.W_enc, sae.b_enc]))
    torch.testing.assert_close(*gradients)


def make_topk_sae() -> SAE:
    return make_sae("topk", n_latents=200)  # k = 4: sparse


def test_codes_have_a_gradient_even_if_they_are_first_read_without_one() -> None:
    sae = make_topk_sae()
    codes = sae.encode(draw_normal(6, 8))
    assert codes.active is not None
    with torch.no_grad():
        before = codes.c
    codes.c.sum().backward()
    assert codes.c is before
    assert sae.W_enc.grad is not None
    assert sae.W_enc.grad.any()


def test_no_active_code_is_no_error() -> None:
    """A prefix of a Matryoshka SAE may have no active latent in a batch."""
    index = ActiveIndex(torch.zeros(4, dtype=torch.long), torch.zeros(0, dtype=torch.long), 3)
    values, W_dec = torch.zeros(0, requires_grad=True), draw_normal(3, 6).requires_grad_()
    decoded = decode_active(ActiveCodes(index, values), W_dec)
    assert torch.equal(decoded, torch.zeros(4, 6))
    decoded.sum().backward()
    assert W_dec.grad is not None
    assert not W_dec.grad.any()
    assert not index.sum_by_token(values).any()


def test_nan_is_not_taken_for_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latent with a weight that is not a number must not disappear from a ReLU SAE: the run has to be stopped."""
    monkeypatch.setattr(active_codes, "MAX_DENSITY", 1.0)
    sae = make_sae("relu")
    with torch.no_grad():
        sae.W_enc[0, 3] = torch.nan
    codes = sae.encode(draw_normal(6, 8))
    assert codes.active is not None
    assert sae.decode(codes).isnan().any()


def test_sparse_steps_in_bfloat16_are_near_those_in_float32() -> None:
    """Mixed precision gives pre-activations in bfloat16; weights and their gradients stay in float32."""
    sae, x = make_topk_sae(), 3 * draw_normal(50, 8)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            codes = sae.encode(x)
            loss = (sae.decode(codes).float() - x).square().mean()
        assert codes.active is not None
        assert codes.active.values.dtype == (torch.bfloat16 if enabled else torch.float32)
        gradients.append(torch.autograd.grad(loss, [sae.W_enc, sae.W_dec, sae.b_enc]))
    for exact, rough in zip(*gradients, strict=True):
        assert rough.dtype == torch.float32
        assert (rough - exact).norm() < 0.02 * exact.norm()
