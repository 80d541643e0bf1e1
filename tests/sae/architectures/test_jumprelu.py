import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.jumprelu import Heaviside, JumpReLU, JumpReluSAE
from tests.support.architectures import draw_normal, make_arguments

PRE = torch.tensor([[0.3], [0.9], [1.05], [1.3], [2.0], [-1.0]])
"""Two values within ε/2 = 0.2 of θ = 1: one on either side."""


def compute_gradients(
    function: type[torch.autograd.Function], upstream: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    pre, theta = PRE.clone().requires_grad_(), torch.tensor([1.0], requires_grad=True)
    value = function.apply(pre, theta, torch.tensor(0.4))
    assert isinstance(value, Tensor)
    value.backward(upstream)
    assert theta.grad is not None
    return value.detach(), pre.grad, theta.grad


def test_gradients_are_the_closed_form_of_the_paper() -> None:
    upstream = torch.arange(1.0, 7.0)[:, None]
    value, by_pre, by_theta = compute_gradients(JumpReLU, upstream)
    assert torch.equal(value, torch.tensor([[0], [0], [1.05], [1.3], [2.0], [0]]))
    assert by_pre is not None
    assert torch.equal(by_pre, torch.tensor([[0.0], [0], [3], [4], [5], [0]]))  # H(pre − θ) · upstream
    torch.testing.assert_close(by_theta, torch.tensor([-(1.0 / 0.4) * (2 + 3)]))  # −(θ/ε) Σ K · upstream
    value, by_pre, by_theta = compute_gradients(Heaviside, upstream)
    assert torch.equal(value, torch.tensor([[0.0], [0], [1], [1], [1], [0]]))
    assert by_pre is None
    torch.testing.assert_close(by_theta, torch.tensor([-(1 / 0.4) * (2 + 3)]))


@pytest.mark.parametrize(("theta", "bandwidth"), [(0.2, 0.1), (1.0, 0.5), (2.0, 0.01)])
def test_each_element_has_the_closed_form(theta: float, bandwidth: float) -> None:
    pre = 2 * draw_normal(40, 3)
    thetas, upstream = torch.full((40, 3), theta), draw_normal(40, 3, seed=2)
    kernel = ((pre - theta).abs() / bandwidth < 0.5).float()
    for function, height in ((JumpReLU, theta), (Heaviside, 1.0)):
        # one latent per token, so that nothing is summed
        own = thetas.flatten().clone().requires_grad_()
        value = function.apply(pre.flatten()[None], own, torch.tensor(bandwidth))
        assert isinstance(value, Tensor)
        value.backward(upstream.flatten()[None])
        assert own.grad is not None
        torch.testing.assert_close(own.grad, -(height / bandwidth) * (kernel * upstream).flatten())


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_the_mean_estimate_is_the_gradient_of_the_expected_loss(theta: float) -> None:
    """With pre ~ N(0, 1) and y = pre, d/dθ E[(c − y)² + λ · H(pre − θ)] is −(λ − θ²) φ(θ).

    Finite differences of the mean over a fine grid confirm this. The estimate approaches it as the bandwidth shrinks.
    """
    coefficient = 0.7
    grid = torch.linspace(-6, 6, 240_001, dtype=torch.float64)[:, None]
    density = torch.exp(-grid.square() / 2) / (2 * torch.pi) ** 0.5 * (12 / 240_000)

    def expected(at: Tensor, bandwidth: float) -> Tensor:
        epsilon = torch.tensor(bandwidth, dtype=torch.float64)
        c, fires = (f.apply(grid, at, epsilon) for f in (JumpReLU, Heaviside))
        assert isinstance(c, Tensor)
        assert isinstance(fires, Tensor)
        return (density * ((c - grid).square() + coefficient * fires)).sum()

    at = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    h = 0.01
    with torch.no_grad():
        difference = (expected(at + h, 1.0) - expected(at - h, 1.0)) / (2 * h)
    phi = torch.exp(-at.detach().square() / 2) / (2 * torch.pi) ** 0.5
    torch.testing.assert_close(
        difference[None][0], ((at.detach().square() - coefficient) * phi)[0], rtol=0.01, atol=1e-3
    )
    errors = []
    for bandwidth in (0.8, 0.4, 0.2, 0.05):
        (estimate,) = torch.autograd.grad(expected(at, bandwidth), at)
        errors.append((estimate - difference).abs().item())
    assert errors[-1] < 0.02 * difference.abs().item()
    assert errors == sorted(errors, reverse=True)


def make_sae(threshold: float = 0.3, bandwidth: float = 0.5, **changed: int) -> JumpReluSAE:
    return JumpReluSAE(**make_arguments(**changed), threshold=threshold, bandwidth=bandwidth)  # pyright: ignore[reportArgumentType]


def test_the_penalty_is_the_mean_l0() -> None:
    sae = make_sae()
    codes = sae.encode(3 * draw_normal(50, 8))
    penalty = sae.penalty(codes, weight=None)
    torch.testing.assert_close(penalty, (codes.c > 0).sum(-1).float().mean())
    penalty.backward()
    assert sae.W_enc.grad is None
    assert sae.log_threshold.grad is not None
    near = ((codes.pre - 0.3).abs() < 0.25).sum(0)
    torch.testing.assert_close(
        sae.log_threshold.grad, -0.3 / 0.5 * near / 50
    )  # with respect to log θ: θ times that with respect to θ


def test_codes_jump_at_the_threshold() -> None:
    sae = make_sae()
    codes = sae.encode(3 * draw_normal(50, 8))
    fires = codes.pre > sae.threshold
    assert torch.equal(codes.c, codes.pre * fires)
    assert codes.c[fires].min() > 0.3
    torch.testing.assert_close(sae.threshold, torch.full((24,), 0.3))


@pytest.mark.parametrize("scale", [0.2, 6.0])
def test_folding_preserves_the_gradients_of_thresholds(scale: float) -> None:
    """θ and ε have the unit of the codes: the folded SAE has the same gradient with respect to log θ on the same activations."""
    sae = make_sae().start_at(torch.zeros(8), input_scale=scale)
    assert isinstance(sae, JumpReluSAE)
    folded = sae.fold()
    assert isinstance(folded, JumpReluSAE)
    x = 3 / scale * draw_normal(50, 8)
    for one in (sae, folded):
        (one.penalty(one.encode(x), weight=None) + one(x).square().sum()).backward()
    torch.testing.assert_close(folded.log_threshold.grad, sae.log_threshold.grad, rtol=1e-3, atol=1e-4)
    assert folded.log_threshold.grad is not None
    assert folded.log_threshold.grad.any()


@pytest.mark.parametrize(("threshold", "bandwidth"), [(0.0, 0.1), (-1.0, 0.1), (0.1, 0.0), (0.1, float("nan"))])
def test_thresholds_that_are_not_positive_are_rejected(threshold: float, bandwidth: float) -> None:
    with pytest.raises(UserError, match="must be positive, not"):
        make_sae(threshold, bandwidth)
