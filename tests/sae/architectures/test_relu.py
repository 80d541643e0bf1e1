import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import Init
from tests.support.architectures import make_arguments


def make_sae(
    *, init: Init = "paper", d_model: int = 8, n_latents: int = 24, seed: int = 0, subtract_b_dec: bool = False
) -> ReluSAE:
    return ReluSAE(
        **make_arguments(init=init, d_model=d_model, n_latents=n_latents, seed=seed, subtract_b_dec=subtract_b_dec)
    )


def make_hand_sae() -> ReluSAE:
    """Return an SAE with d_model 2 and three latents, whose decoder rows have norms 5, 2 and 1."""
    sae = make_sae(d_model=2, n_latents=3)
    values = {
        "W_enc": [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]],
        "b_enc": [0.5, -1.0, 0.0],
        "W_dec": [[3.0, 4.0], [0.0, -2.0], [1.0, 0.0]],
        "b_dec": [10.0, 20.0],
    }
    sae.load_state_dict({name: torch.tensor(value) for name, value in values.items()}, strict=False)
    return sae


X = torch.tensor([[1.0, 1.0], [-2.0, 0.0]])


def test_codes_and_reconstruction_by_hand() -> None:
    sae = make_hand_sae()
    codes = sae.encode(X)
    torch.testing.assert_close(codes.c, torch.tensor([[1.5, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    expected = torch.tensor([[1.5 * 0.6 + 10, 1.5 * 0.8 - 1.0 + 20], [12.0, 20.0]])
    torch.testing.assert_close(sae.decode(codes), expected)
    torch.testing.assert_close(sae(X), expected)  # forward is decode of encode


def test_penalty_by_hand() -> None:
    """The tokens have ‖c‖₁ = 2.5 and 2, and d_model is 2."""
    sae = make_hand_sae()
    codes = sae.encode(X)
    assert sae.penalty(codes, weight=None).item() == pytest.approx((2.5 + 2.0) / 2 / 2)
    assert sae.penalty(codes, weight=torch.tensor([0.0, 1.0])).item() == pytest.approx(2.0 / 2)
    assert sae.auxiliary(codes, X, weight=None) is None


def test_scales_by_hand() -> None:
    """Inputs are multiplied and outputs divided by a scale; the two scales of a transcoder may differ."""
    sae, plain = make_hand_sae(), make_hand_sae()
    sae.input_scale.fill_(0.5)
    sae.output_scale.fill_(4.0)
    torch.testing.assert_close(sae.encode(X).c, plain.encode(0.5 * X).c)
    torch.testing.assert_close(sae(X), plain(0.5 * X) / 4.0)


def test_subtracting_the_decoder_bias_by_hand() -> None:
    sae, plain = make_hand_sae(), make_hand_sae()
    sae.subtract_b_dec = True
    torch.testing.assert_close(sae.encode(X + sae.b_dec).c, plain.encode(X).c)
    torch.testing.assert_close(sae.fold().encode(X + sae.b_dec).c, plain.encode(X).c)


def test_the_decoder_norm_has_no_gradient_and_no_effect() -> None:
    """The normalisation is part of the forward pass, so the gradient is orthogonal to each direction."""
    sae, longer = make_sae(), make_sae()
    with torch.no_grad():
        longer.W_dec.mul_(3.0)
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(longer(x), sae(x))
    sae(x).square().sum().backward()
    assert sae.W_dec.grad is not None
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(-1), torch.zeros(24), rtol=0, atol=1e-3)
    assert sae.W_dec.grad.abs().max() > 0.1


def test_gradients_against_finite_differences() -> None:
    sae = make_sae(d_model=3, n_latents=5).double()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    parameters = tuple(p.detach().clone().requires_grad_() for p in sae.parameters())
    names = [name for name, _ in sae.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        return torch.func.functional_call(sae, dict(zip(names, values, strict=True)), (x,)).square().mean()

    assert torch.autograd.gradcheck(loss, parameters)


def test_the_initialisation_of_the_paper() -> None:
    sae = make_sae(d_model=64, n_latents=512)
    bound = 64**-0.5
    for parameter in (sae.W_enc, sae.b_enc):
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.95 * bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert 0.9 * 512**-0.5 < sae.b_dec.abs().max() <= 512**-0.5
    torch.testing.assert_close(sae.W_dec.T @ sae.W_dec, torch.eye(64), rtol=0, atol=1e-5)  # a tight frame
    cosine = torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=-1)
    assert cosine.mean().abs() < 0.02  # independent of each other
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    assert (sae.encode(x).c > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_tied_initialisation() -> None:
    sae = make_sae(init="tied", d_model=64, n_latents=512)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()  # equal at initialisation, but separate parameters
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((512,), 0.1))
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()


@pytest.mark.parametrize("init", ["paper", "tied"])
def test_the_generator_determines_the_weights(init: Init) -> None:
    one, same, other = (make_sae(init=init, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.W_enc, other.W_enc)


def test_starting_at_the_mean_reconstructs_it_without_codes() -> None:
    mean = torch.arange(8.0)
    sae = make_sae(init="tied").start_at(mean, input_scale=0.2)
    none = torch.zeros(1, 24)
    torch.testing.assert_close(sae.decode(Codes(none, none)), mean[None])


def test_shapes_and_initial_bias_of_a_transcoder() -> None:
    sae = ReluSAE(**make_arguments(init="tied", d_out=5))
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.full((24,), 0.1))
    sae.start_at(torch.arange(5.0), input_scale=2.0, output_scale=0.5)
    none = torch.zeros(1, 24)
    torch.testing.assert_close(sae.decode(Codes(none, none)), torch.arange(5.0)[None])
    assert sae(torch.zeros(2, 3, 8)).shape == (2, 3, 5)


def test_an_sae_without_latents_is_rejected() -> None:
    with pytest.raises(UserError, match="at least one latent, not 0"):
        make_sae(n_latents=0)
