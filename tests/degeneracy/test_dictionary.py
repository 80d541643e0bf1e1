"""Tests of the shares of a dictionary outside a subspace, by hand and under rescaling."""

import math

import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis
from crux.degeneracy.dictionary import measure_outside, strongest_subspace
from crux.sae.architectures.relu import ReluSAE


def build_basis(C: Tensor, strength: list[float]) -> Basis:
    lambdas = torch.tensor(strength, dtype=torch.float64)
    return Basis(
        "hidden", "local", torch.zeros(len(C), dtype=torch.float64), C, torch.linalg.pinv(C), lambdas, 0.0, 0.0
    )


def build_sae(directions: list[list[float]]) -> ReluSAE:
    """Return an SAE whose latent i encodes axis i of the activation, with the given decoder directions."""
    n, d = len(directions), len(directions[0])
    relu_sae = ReluSAE(
        d_model=d, d_out=None, n_latents=n, init="tied", init_norm=1.0, subtract_b_dec=False,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        relu_sae.W_enc.copy_(torch.eye(d, n))
        relu_sae.W_dec.copy_(torch.tensor(directions))
    return relu_sae


def test_shares_by_hand() -> None:
    """The subspace is spanned by axes 1 and 2 of 3. The latents write along axis 1, between axes 2 and 3, and along axis 3.

    The third latent never fires.
    """
    C = torch.tensor([[3.0, 1.0], [0.0, 0.1], [0.0, 0.0]], dtype=torch.float64)
    Q = strongest_subspace(build_basis(C, [2.0, 1.0]), left_out=0.0)
    torch.testing.assert_close(Q @ Q.T, torch.diag(torch.tensor([1.0, 1.0, 0.0]).double()))
    activations = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 0.0, -1.0]])
    found = measure_outside(build_sae([[5.0, 0, 0], [0, 2.0, 2.0], [0, 0, 1.0]]), activations, activations, Q)
    torch.testing.assert_close(found.share, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), atol=1e-7, rtol=0)
    assert found.living.tolist() == [True, True, False]
    assert found.mean == pytest.approx(0.25)
    assert found.weighted == pytest.approx(4 * 0.5 / (10 + 4))  # E c² of 10/3 and 4/3
    assert found.mostly == 0
    # inside, on axes 1 and 2, the reconstructions are (1, 0), (0, √2), (3, 0)
    mean = torch.tensor([4 / 3, 2 / 3])
    variance = float((torch.tensor([[1.0, 0], [0, 2], [3, 0]]) - mean).square().sum())
    assert found.explained_inside == pytest.approx(1 - (2 - math.sqrt(2)) ** 2 / variance)
    # outside, the activations are 0, 0, −1 and the reconstructions 0, √2, 0
    assert found.explained_outside == pytest.approx(1 - (2 + 1) / (2 / 3))


def test_subspace_has_the_fewest_directions_that_leave_out_the_share() -> None:
    C = torch.eye(4, dtype=torch.float64)
    some_basis = build_basis(C, [8.0, 1.0, 0.9, 0.1])
    assert [strongest_subspace(some_basis, left_out=share).shape[1] for share in (0.5, 0.2, 0.15, 0.1, 0.02, 0.0)] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]
    with pytest.raises(UserError, match="left_out=1: must be at least 0 and below 1"):
        strongest_subspace(some_basis, left_out=1)


def test_shares_do_not_depend_on_scales_of_decoder_and_basis() -> None:
    rng = torch.Generator().manual_seed(1)
    C = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    directions, x = torch.randn(4, 5, generator=rng), torch.randn(50, 5, generator=rng)
    one = measure_outside(
        build_sae(directions.tolist()), x, x, strongest_subspace(build_basis(C, [1, 1, 1]), left_out=0.0)
    )
    scaled = C @ torch.randn(3, 3, generator=rng, dtype=torch.float64)
    other = measure_outside(
        build_sae((directions * torch.tensor([[1.0], [3], [0.1], [7]])).tolist()),
        x,
        x,
        strongest_subspace(build_basis(scaled, [3, 2, 1]), left_out=0.0),
    )
    torch.testing.assert_close(one.share, other.share, rtol=1e-5, atol=1e-6)
    assert one.weighted == pytest.approx(other.weighted, rel=1e-5)
    whole_space = measure_outside(build_sae(directions.tolist()), x, x, torch.eye(5, dtype=torch.float64))
    assert whole_space.weighted == pytest.approx(0, abs=1e-6)
    assert math.isnan(whole_space.explained_outside)


def test_invalid_arguments_are_rejected() -> None:
    x = torch.ones(3, 2)
    with pytest.raises(UserError, match="directions of 2 dimensions, the basis of 4"):
        measure_outside(build_sae([[1.0, 0.0]]), x, x, torch.eye(4, dtype=torch.float64))
    with pytest.raises(UserError, match="no latent fires"):
        measure_outside(build_sae([[1.0, 0.0]]), -x, -x, torch.eye(2, dtype=torch.float64))
