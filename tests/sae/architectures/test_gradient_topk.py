import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.topk import TopKSAE
from tests.support.architectures import draw_normal, make_arguments

X, G = 3 * draw_normal(60, 8), draw_normal(60, 8, seed=2)


def make_sae(beta: float, k: int = 4) -> GradientTopKSAE:
    return GradientTopKSAE(**make_arguments(), k=k, beta=beta)


def compute_plain_codes(sae: GradientTopKSAE, x: Tensor, g: Tensor, mean: Tensor) -> Tensor:
    """Compute the formula of docs/reference/gradient_saes.md §1 step by step: z, a, s, the k largest s."""
    z = sae.pre_activations(x).relu()
    a = (g @ sae.dictionary().T).abs()
    s = z * (1 + sae.beta * a / mean)
    kept = torch.zeros_like(z)
    for row, chosen in enumerate(s.argsort(dim=-1, descending=True)[:, : sae.k]):
        kept[row, chosen] = z[row, chosen]
    return kept


@pytest.mark.parametrize("beta", [0.3, 2.0, 50.0])
def test_codes_follow_the_formula(beta: float) -> None:
    sae = make_sae(beta)
    first = sae.encode(X, G)
    own_mean = (G @ sae.dictionary().T).abs().mean()
    assert torch.equal(first.c, compute_plain_codes(sae, X, G, own_mean))  # in the first batch: the mean of that batch
    sae.observe(sae.encode(X, 5 * G))
    torch.testing.assert_close(sae.effect, 5 * own_mean)
    assert torch.equal(sae.encode(X, G).c, compute_plain_codes(sae, X, G, 5 * own_mean))


def make_hand_sae() -> GradientTopKSAE:
    """Return an SAE with two latents along the axes, pre = x and k = 1, so that |g D| = |g|, with mean effect 1."""
    sae = GradientTopKSAE(**make_arguments(d_model=2, n_latents=2), k=1, beta=2.0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.b_enc.zero_()
        sae.W_dec.copy_(7 * torch.eye(2))  # the effect does not depend on the norm of W_dec
        sae.effect.fill_(1.0)
        sae.observed_n.fill_(1)
    return sae


def test_by_hand() -> None:
    """For x = (3, 2) the scores are 3 · (1 + 2·0) = 3 and 2 · (1 + 2·½) = 4, so the second latent fires, with value 2."""
    sae = make_hand_sae()
    x = torch.tensor([[3.0, 2.0]])
    assert sae.encode(x, torch.tensor([[0.0, -0.5]])).c.tolist() == [[0.0, 2.0]]
    assert sae.encode(x, torch.tensor([[0.0, 0.2]])).c.tolist() == [[3.0, 0.0]]  # 3 against 2 · 1.4
    assert sae.encode(x).c.tolist() == [[3.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, 24), seed=st.integers(0, 10_000), scale=st.floats(0, 1e6))
def test_without_beta_it_is_topk_bit_for_bit(k: int, seed: int, scale: float) -> None:
    """Rounded weights and inputs give many ties, which must be broken in the same way."""
    sae, plain = GradientTopKSAE(**make_arguments(), k=k, beta=0.0), TopKSAE(**make_arguments(), k=k)
    with torch.no_grad():
        for one in (sae, plain):
            one.W_enc.copy_(draw_normal(8, 24, seed=3).round())
            one.b_enc.copy_(draw_normal(24, seed=4).round())
    x = draw_normal(20, 8, seed=seed).round()
    codes, wanted = sae.encode(x, scale * draw_normal(20, 8, seed=seed + 1)), plain.encode(x)
    assert torch.equal(codes.c, wanted.c)
    assert torch.equal(codes.pre, wanted.pre)
    gradients = [torch.autograd.grad(c.square().sum(), one.W_enc)[0] for c, one in ((codes.c, sae), (wanted.c, plain))]
    assert torch.equal(*gradients)


def test_without_a_gradient_it_is_topk() -> None:
    sae, plain = make_sae(3.0), TopKSAE(**make_arguments(), k=4)
    codes = sae.encode(X)
    assert torch.equal(codes.c, plain.encode(X).c)
    assert codes.observed is None
    sae.observe(codes)
    assert sae.observed_n.item() == 0  # no running mean was updated
    assert type(sae.fold()) is TopKSAE
    assert sae.fold().k == 4


@pytest.mark.parametrize("factor", [1e-3, 1000.0])
def test_the_scale_of_the_loss_does_not_matter(factor: float) -> None:
    """A sum instead of a mean, or other units, change nothing, since the effect is divided by its running mean."""
    codes = []
    for g in (G, factor * G):
        sae = make_sae(2.0)
        for seed in range(3):
            sae.observe(sae.encode(X, (g / G) * draw_normal(60, 8, seed=seed)))
        codes.append(sae.encode(X, g).c)
    assert torch.equal(*codes)
    assert not torch.equal(codes[0], make_sae(0.0).encode(X, G).c)


def test_values_are_those_of_the_encoder() -> None:
    codes = make_sae(5.0).encode(X, G)
    kept = codes.c > 0
    assert torch.equal(codes.c[kept], codes.pre[kept])
    assert (kept.sum(-1) <= 4).all()


def test_a_large_beta_selects_by_the_effect() -> None:
    sae = make_sae(1e6)
    codes = sae.encode(X, G)
    attribution = codes.pre.relu() * (G @ sae.dictionary().T).abs()
    chosen = attribution.topk(4, dim=-1).indices
    assert torch.equal(codes.c.gather(-1, chosen) > 0, attribution.gather(-1, chosen) > 0)
    assert (attribution[codes.c == 0].numel() + (codes.c > 0).sum()) == codes.c.numel()


def test_no_gradient_flows_to_g_or_through_the_selection() -> None:
    sae = make_sae(2.0)
    g = G.clone().requires_grad_()
    codes = sae.encode(X, g)
    codes.c.square().sum().backward()
    assert g.grad is None
    assert sae.W_dec.grad is None  # the score depends on the dictionary, the codes do not
    assert codes.observed is not None
    assert not codes.observed.requires_grad
    assert sae.W_enc.grad is not None
    support = (codes.c > 0).float()
    torch.testing.assert_close(sae.W_enc.grad, X.T @ (2 * codes.c.detach() * support))


def test_the_effect_is_a_running_mean() -> None:
    sae = make_sae(2.0)
    means = []
    batches = [sae.encode(X, draw_normal(60, 8, seed=seed)) for seed in range(5)]
    for seed, codes in enumerate(batches):
        means.append((draw_normal(60, 8, seed=seed) @ sae.dictionary().T).abs().mean())
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
    sae = make_sae(2.0)
    if observed:
        sae.observe(sae.encode(X, 0 * G))
    for g in (0 * G, G) if observed else (0 * G,):
        assert torch.equal(sae.encode(X, g).c, sae.encode(X).c)


@pytest.mark.parametrize("beta", [-0.1, float("nan")])
def test_a_negative_beta_is_rejected(beta: float) -> None:
    with pytest.raises(UserError, match="beta must not be negative"):
        make_sae(beta)
