import pytest
import torch

from crux.sae.architectures.gated import GatedSAE
from tests.support.architectures import draw_normal, make_arguments


def make_hand_sae() -> GatedSAE:
    """Return an SAE with d_model 2 and three latents, whose decoder rows have norms 5, 2 and 1."""
    sae = GatedSAE(**make_arguments(d_model=2, n_latents=3))
    values = {
        "W_enc": [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]],
        "b_enc": [0.5, -3.0, 1.0],
        "b_gate": [-1.5, -1.0, 0.5],
        "r_mag": [0.0, 0.6931472, 0.0],  # exp: 1, 2, 1
        "W_dec": [[3.0, 4.0], [0.0, -2.0], [1.0, 0.0]],
        "b_dec": [10.0, 20.0],
    }
    sae.load_state_dict({name: torch.tensor(value) for name, value in values.items()}, strict=False)
    return sae


X = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
"""u = (1, 2, −1) and (2, 0, −2)."""
GATE = torch.tensor([[-0.5, 1.0, -0.5], [0.5, -1.0, -1.5]])
C = torch.tensor([[0.0, 1.0, 0.0], [2.5, 0.0, 0.0]])
"""magnitudes (1.5, 1, 0) and (2.5, −3, −1), where the gate is open"""


def test_codes_by_hand() -> None:
    codes = make_hand_sae().encode(X)
    torch.testing.assert_close(codes.pre, GATE)
    torch.testing.assert_close(codes.c, C)


def test_an_open_gate_without_magnitude_has_code_zero() -> None:
    sae = make_hand_sae()
    with torch.no_grad():
        sae.b_gate.fill_(10.0)
    torch.testing.assert_close(sae.encode(X).c, torch.tensor([[1.5, 1.0, 0.0], [2.5, 0.0, 0.0]]))


def test_penalty_and_auxiliary_by_hand() -> None:
    sae = make_hand_sae()
    codes = sae.encode(X)
    assert sae.penalty(codes, weight=None).item() == pytest.approx((1.0 + 0.5) / 2 / 2)
    assert sae.penalty(codes, weight=torch.tensor([0.0, 1.0])).item() == pytest.approx(0.5 / 2)
    decoded = torch.tensor([[10.0, 19.0], [10.3, 20.4]])  # ReLU(gate) D + b_dec
    wanted = (decoded - X).square().mean().item()
    assert sae.auxiliary(codes, X, weight=None).item() == pytest.approx(wanted)
    assert sae.auxiliary(codes, X, weight=torch.tensor([1.0, 0.0])).item() == pytest.approx((81 + 324) / 2)


def test_the_auxiliary_term_only_trains_the_gate() -> None:
    sae = make_hand_sae()
    sae.auxiliary(sae.encode(X), X, weight=None).backward()
    assert sae.W_dec.grad is None
    assert sae.b_dec.grad is None
    assert sae.r_mag.grad is None
    assert sae.b_enc.grad is None
    for trained in (sae.W_enc, sae.b_gate):
        assert trained.grad is not None
        assert trained.grad.any()


def test_the_reconstruction_does_not_train_the_bias_of_the_gate() -> None:
    sae = make_hand_sae()
    sae(X).square().sum().backward()
    assert sae.b_gate.grad is None
    assert sae.r_mag.grad is not None
    assert sae.r_mag.grad.any()


def test_gate_and_magnitude_agree_at_initialisation() -> None:
    sae = GatedSAE(**make_arguments())
    codes = sae.encode(3 * draw_normal(20, 8))
    assert torch.equal(codes.c, codes.pre.relu())
    assert sae.b_gate.data_ptr() != sae.b_enc.data_ptr()


def test_folding_shifts_both_biases() -> None:
    sae = GatedSAE(**make_arguments(subtract_b_dec=True))
    with torch.no_grad():
        sae.r_mag.copy_(0.5 * draw_normal(24))
    folded = sae.fold()
    assert isinstance(folded, GatedSAE)
    u = sae.b_dec @ sae.W_enc
    torch.testing.assert_close(folded.b_gate, sae.b_gate - u)
    torch.testing.assert_close(folded.b_enc, sae.b_enc - sae.r_mag.exp() * u)
    torch.testing.assert_close(folded.r_mag, sae.r_mag)
