import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.sae.architectures.codes import Codes
from crux.sae.architectures.relu import ReluSAE
from crux.sae.losses.auxk import auxk_loss


def draw_normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DEAD = torch.tensor([True, False, True, True, False, False, True, False])


def identity(mean: Tensor) -> Tensor:
    """Return the mean unchanged, since these tokens are the whole batch."""
    return mean


def compute_plainly(
    pre: Tensor, dictionary: Tensor, residual: Tensor, *, dead: Tensor, k: int, weight: Tensor | None
) -> Tensor:
    """Compute the formula literally, with a dense product."""
    kept = residual.detach() if weight is None else residual.detach()[weight > 0]
    pre = pre if weight is None else pre[weight > 0]
    only_dead = pre[:, dead]
    k = min(k, only_dead.shape[1])
    top = only_dead.topk(k)
    z = torch.zeros_like(only_dead).scatter(-1, top.indices, top.values)
    error = (kept - z @ F.normalize(dictionary[dead], dim=-1)).square().mean()
    return error / (kept - kept.mean(0)).square().mean()


def test_by_hand() -> None:
    """e = (1, 0) and (−1, 0) have variance 1 per token. The last two latents are dead; the larger one is used."""
    pre = torch.tensor([[9.0, 0.5, -1.0], [9.0, -3.0, -2.0]])
    dictionary = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    residual = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    dead = torch.tensor([False, True, True])
    found = auxk_loss(Codes(pre, pre), dictionary, residual, dead=dead, k=1, weight=None, mean_over_ranks=identity)
    # ê = (0.5, 0) and −2 · (0, 1): e − ê = (0.5, 0), (−1, 2)
    assert found.item() == pytest.approx((0.25 + 5) / 2)
    first = auxk_loss(
        Codes(pre, pre), dictionary, residual, dead=dead, k=1, weight=torch.tensor([1.0, 0.0]), mean_over_ranks=identity
    )
    assert first.item() == 0  # one token has no variance


@pytest.mark.parametrize("weight", [None, torch.arange(20).ge(6).float()])
@pytest.mark.parametrize("k", [1, 3, 4, 8])
def test_value_and_gradient_against_autograd_of_the_formula(k: int, weight: Tensor | None) -> None:
    pre, dictionary = draw_normal(20, 8, seed=0).requires_grad_(), draw_normal(8, 5, seed=1).requires_grad_()
    residual = draw_normal(20, 5, seed=2).requires_grad_()
    values = [
        auxk_loss(Codes(pre, pre), dictionary, residual, dead=DEAD, k=k, weight=weight, mean_over_ranks=identity),
        compute_plainly(pre, dictionary, residual, dead=DEAD, k=k, weight=weight),
    ]
    torch.testing.assert_close(*values)
    for parameter in (pre, dictionary):
        fast, slow = (torch.autograd.grad(value, parameter, retain_graph=True)[0] for value in values)
        torch.testing.assert_close(fast, slow)
        assert fast.any()
    assert torch.autograd.grad(values[0], residual, allow_unused=True)[0] is None  # detached


def test_gradient_against_finite_differences() -> None:
    pre, dictionary = (
        draw_normal(6, 8, seed=0).double().requires_grad_(),
        draw_normal(8, 3, seed=1).double().requires_grad_(),
    )
    residual = draw_normal(6, 3, seed=2).double()
    assert torch.autograd.gradcheck(
        lambda pre, dictionary: auxk_loss(
            Codes(pre, pre), dictionary, residual, dead=DEAD, k=2, weight=None, mean_over_ranks=identity
        ),
        (pre, dictionary),
    )


def test_the_scale_of_the_residual_does_not_matter() -> None:
    pre, dictionary, residual = draw_normal(20, 8, seed=0), draw_normal(8, 5, seed=1), draw_normal(20, 5, seed=2)
    small, large = (
        auxk_loss(
            Codes(s * pre, s * pre), dictionary, s * residual, dead=DEAD, k=3, weight=None, mean_over_ranks=identity
        )
        for s in (1.0, 1000.0)
    )
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize(("what", "value"), [("no latent is dead", 1.0), ("no variance", 1.3), ("no variance", 0.0)])
def test_it_is_zero_without_dead_latents_or_variance(what: str, value: float) -> None:
    pre, dictionary = draw_normal(20, 8, seed=0).requires_grad_(), draw_normal(8, 5, seed=1).requires_grad_()
    residual = draw_normal(20, 5, seed=2) if what == "no latent is dead" else torch.full((20, 5), value)
    dead = torch.zeros(8, dtype=torch.bool) if what == "no latent is dead" else DEAD
    found = auxk_loss(Codes(pre, pre), dictionary, residual, dead=dead, k=3, weight=None, mean_over_ranks=identity)
    assert found.item() == 0
    for gradient in torch.autograd.grad(found, (pre, dictionary)):
        assert not gradient.any()  # and not a NaN
        assert gradient.isfinite().all()


def test_only_dead_latents_receive_a_gradient() -> None:
    """The latents of a ReLU SAE with a very low bias never fire, so they would get no gradient through a ReLU."""
    sae = ReluSAE(
        d_model=5,
        n_latents=8,
        init="tied",
        init_norm=1.0,
        subtract_b_dec=False,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        sae.b_enc[DEAD] = -50.0
    x = draw_normal(20, 5, seed=2)
    codes = sae.encode(x)
    assert not codes.c[:, DEAD].any()
    x_hat = sae.decode(codes)
    auxk_loss(codes, sae.W_dec, x - x_hat, dead=DEAD, k=4, weight=None, mean_over_ranks=identity).backward()
    for gradient in (sae.W_enc.grad, sae.W_dec.grad):
        assert gradient is not None
        by_latent = gradient.any(0 if gradient.shape[0] == 5 else 1)
        assert torch.equal(by_latent, DEAD)
    assert sae.b_dec.grad is None  # neither through the residual nor by a bias of ê
