import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.architectures import base, normal
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.topk import TopKSAE

X, G = 3 * normal(60, 8), normal(60, 8, seed=2)


def made(beta: float, k: int = 4) -> GradientTopKSAE:
    return GradientTopKSAE(**base(), k=k, beta=beta)


def plain_codes(sae: GradientTopKSAE, x: Tensor, g: Tensor, mean: Tensor) -> Tensor:
    """Compute the formula of docs/reference/gradient_saes.md §1 step by step: z, a, s, the k largest s."""
    z = sae.pre_activations(x).relu()
    a = (g @ sae.dictionary().T).abs()
    s = z * (1 + sae.beta * a / mean)
    kept = torch.zeros_like(z)
    for row, chosen in enumerate(s.argsort(dim=-1, descending=True)[:, : sae.k]):
        kept[row, chosen] = z[row, chosen]
    return kept


@pytest.mark.parametrize("beta", [0.3, 2.0, 50.0])
def test_codes_are_the_formulas(beta: float) -> None:
    sae = made(beta)
    first = sae.encode(X, G)
    own_mean = (G @ sae.dictionary().T).abs().mean()
    assert torch.equal(first.c, plain_codes(sae, X, G, own_mean))  # before the first observation: the batch's own mean
    sae.observe(sae.encode(X, 5 * G))
    torch.testing.assert_close(sae.effect, 5 * own_mean)
    assert torch.equal(sae.encode(X, G).c, plain_codes(sae, X, G, 5 * own_mean))


def by_hand() -> GradientTopKSAE:
    """Two latents along the axes, pre = x, k = 1; |g D| = |g|, mean effect 1."""
    sae = GradientTopKSAE(**base(d_model=2, n_latents=2), k=1, beta=2.0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.b_enc.zero_()
        sae.W_dec.copy_(7 * torch.eye(2))  # its norm is not in the effect
        sae.effect.fill_(1.0)
        sae.observed_n.fill_(1)
    return sae


def test_by_hand() -> None:
    """x = (3, 2): scores 3 · (1 + 2·0) = 3 and 2 · (1 + 2·½) = 4, so the second, with its value of 2."""
    sae = by_hand()
    x = torch.tensor([[3.0, 2.0]])
    assert sae.encode(x, torch.tensor([[0.0, -0.5]])).c.tolist() == [[0.0, 2.0]]
    assert sae.encode(x, torch.tensor([[0.0, 0.2]])).c.tolist() == [[3.0, 0.0]]  # 3 against 2 · 1.4
    assert sae.encode(x).c.tolist() == [[3.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, 24), seed=st.integers(0, 10_000), scale=st.floats(0, 1e6))
def test_without_beta_it_is_topk_bit_for_bit(k: int, seed: int, scale: float) -> None:
    """Ties too: rounded weights and inputs make many of them."""
    sae, plain = GradientTopKSAE(**base(), k=k, beta=0.0), TopKSAE(**base(), k=k)
    with torch.no_grad():
        for one in (sae, plain):
            one.W_enc.copy_(normal(8, 24, seed=3).round())
            one.b_enc.copy_(normal(24, seed=4).round())
    x = normal(20, 8, seed=seed).round()
    codes, wanted = sae.encode(x, scale * normal(20, 8, seed=seed + 1)), plain.encode(x)
    assert torch.equal(codes.c, wanted.c)
    assert torch.equal(codes.pre, wanted.pre)
    gradients = [torch.autograd.grad(c.square().sum(), one.W_enc)[0] for c, one in ((codes.c, sae), (wanted.c, plain))]
    assert torch.equal(*gradients)


def test_without_a_gradient_it_is_topk() -> None:
    sae, plain = made(3.0), TopKSAE(**base(), k=4)
    codes = sae.encode(X)
    assert torch.equal(codes.c, plain.encode(X).c)
    assert codes.observed is None
    sae.observe(codes)
    assert sae.observed_n.item() == 0  # nothing was seen
    assert type(sae.fold()) is TopKSAE
    assert sae.fold().k == 4


@pytest.mark.parametrize("factor", [1e-3, 1000.0])
def test_the_losss_scale_does_not_matter(factor: float) -> None:
    """Neither a sum for a mean nor units: the running mean has taken it out."""
    codes = []
    for g in (G, factor * G):
        sae = made(2.0)
        for seed in range(3):
            sae.observe(sae.encode(X, (g / G) * normal(60, 8, seed=seed)))
        codes.append(sae.encode(X, g).c)
    assert torch.equal(*codes)
    assert not torch.equal(codes[0], made(0.0).encode(X, G).c)


def test_the_values_are_the_encoders() -> None:
    codes = made(5.0).encode(X, G)
    kept = codes.c > 0
    assert torch.equal(codes.c[kept], codes.pre[kept])
    assert (kept.sum(-1) <= 4).all()


def test_a_large_beta_chooses_by_the_effect() -> None:
    sae = made(1e6)
    codes = sae.encode(X, G)
    attribution = codes.pre.relu() * (G @ sae.dictionary().T).abs()
    chosen = attribution.topk(4, dim=-1).indices
    assert torch.equal(codes.c.gather(-1, chosen) > 0, attribution.gather(-1, chosen) > 0)
    assert (attribution[codes.c == 0].numel() + (codes.c > 0).sum()) == codes.c.numel()


def test_no_gradient_to_g_nor_through_the_choice() -> None:
    sae = made(2.0)
    g = G.clone().requires_grad_()
    codes = sae.encode(X, g)
    codes.c.square().sum().backward()
    assert g.grad is None
    assert sae.W_dec.grad is None  # the dictionary is in the score, but not in the codes
    assert codes.observed is not None
    assert not codes.observed.requires_grad
    assert sae.W_enc.grad is not None
    support = (codes.c > 0).float()
    torch.testing.assert_close(sae.W_enc.grad, X.T @ (2 * codes.c.detach() * support))


def test_the_effect_is_a_running_mean() -> None:
    sae = made(2.0)
    means = []
    batches = [sae.encode(X, normal(60, 8, seed=seed)) for seed in range(5)]
    for seed, codes in enumerate(batches):
        means.append((normal(60, 8, seed=seed) @ sae.dictionary().T).abs().mean())
        assert codes.observed is not None
        torch.testing.assert_close(codes.observed, means[-1].detach())
        sae.observe(codes)
    torch.testing.assert_close(sae.effect, torch.stack(means).mean().detach())
    sae.observed_n.fill_(10_000)
    before = sae.effect.clone()
    sae.observe(batches[-1])
    torch.testing.assert_close(sae.effect, 0.99 * before + 0.01 * means[-1].detach())


@pytest.mark.parametrize("observed", [True, False])
def test_a_gradient_of_zero_is_topk(observed: bool) -> None:
    sae = made(2.0)
    if observed:
        sae.observe(sae.encode(X, 0 * G))
    for g in (0 * G, G) if observed else (0 * G,):
        assert torch.equal(sae.encode(X, g).c, sae.encode(X).c)


@pytest.mark.parametrize("beta", [-0.1, float("nan")])
def test_a_beta_below_zero(beta: float) -> None:
    with pytest.raises(UserError, match="beta must not be negative"):
        made(beta)
