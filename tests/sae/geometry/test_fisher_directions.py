"""The Fisher information against its closed form, and the energy of activations, errors and dictionaries in its directions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.geometry.energy_against_use import EnergyAgainstUse, energy_shares, measure_energy_against_use
from crux.sae.geometry.fisher_directions import measure_fisher, top_eigenvectors
from tests.support.small_saes import make_random_sae, make_relu_sae, make_scaling_sae
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK = "blocks.0.hook_resid_pre"


def make_positionwise_toy(scale: float = 1.0) -> ToySubject:
    """Return a subject in which no position reads another one and the residual is mapped to the logits by W_U."""
    random = make_random_toy(seed=3)
    return ToySubject(embed=random.embed, blocks=[lambda h: h], W_U=scale * random.unembed.W_U)


def draw_batches(n: int, *, batch: int = 16, pos: int = 20, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(11, (batch, pos), generator=generator) for _ in range(n)]


def test_the_fisher_information_is_that_of_the_softmax() -> None:
    toy, batches = make_positionwise_toy(), draw_batches(3)
    found = measure_fisher(toy, hook=HOOK, batches=batches, n_draws=20, seed=0)
    tokens = torch.cat(batches)[:, 1:].flatten()
    W_U = toy.unembed.W_U
    p = (toy.embed[tokens] @ W_U.T).softmax(-1)
    exact = torch.einsum("tv,vd,ve->de", p, W_U, W_U) - torch.einsum("tv,vd,tw,we->de", p, W_U, p, W_U)
    exact /= len(tokens)
    assert found.n_tokens == len(tokens)
    assert (found.matrix - exact).norm() < 0.05 * exact.norm()
    assert found.trace == pytest.approx(float(exact.trace()), rel=0.03)


def test_use_per_energy() -> None:
    fisher = measure_fisher(make_positionwise_toy(), hook=HOOK, batches=draw_batches(1), n_draws=1, seed=0)
    assert fisher.use_per_energy(torch.eye(6).double()) == pytest.approx(1)
    values = torch.linalg.eigvalsh(fisher.matrix)
    top = top_eigenvectors(fisher.matrix)[:, 0]
    assert fisher.use_per_energy(7 * torch.outer(top, top)) == pytest.approx(float(6 * values[-1] / values.sum()))
    assert fisher.use_per_energy(torch.zeros(6, 6).double()) is None
    largest = top_eigenvectors(fisher.matrix)
    torch.testing.assert_close(largest.T @ fisher.matrix @ largest, values.flip(0).diag())
    assert (largest.gather(0, largest.abs().argmax(0, keepdim=True)) > 0).all()


def test_shares_of_energy() -> None:
    basis = torch.eye(3).double()[:, [2, 0, 1]]
    assert energy_shares(torch.tensor([1.0, 2, 5]).diag().double(), basis, (1, 2, 3)) == pytest.approx(
        (5 / 8, 6 / 8, 1)
    )


def measure(sae: SAE, toy: ToySubject | None = None) -> EnergyAgainstUse:
    return measure_energy_against_use(
        toy or make_positionwise_toy(), Site(HOOK, HOOK, sae), fit=draw_batches(4), held_out=draw_batches(4, seed=1),
        ks=(1, 2, 6), n_draws=4, seed=0,
    )  # fmt: skip


def test_rows_are_the_energies_of_x_its_reconstruction_its_error_and_the_dictionary() -> None:
    toy, sae = make_positionwise_toy(), make_random_sae(d_model=6, n_latents=9, seed=0)
    found = measure(sae, toy)
    x = toy.embed[torch.cat(draw_batches(4, seed=1))[:, 1:].flatten()]
    codes = sae.encode(x).c.detach()
    x_hat = (codes @ sae.dictionary() + sae.b_dec).detach()
    top = top_eigenvectors(found.fisher.matrix)[:, :2].float()
    errors = x_hat - x
    rows = {"x": x - x.mean(0), "x_hat": x_hat - x_hat.mean(0), "error": errors}
    for name, values in rows.items():
        share = float((values @ top).square().sum() / values.square().sum())
        assert found.in_fisher[name][1] == pytest.approx(share, rel=1e-4)
        assert found.in_fisher[name][2] == pytest.approx(1)
        assert found.in_variance[name][2] == pytest.approx(1)
    energies = codes.square().mean(0)
    per_latent = (sae.dictionary().detach() @ top).square().sum(1)
    assert found.in_fisher["dictionary"][1] == pytest.approx(
        float((energies * per_latent).sum() / energies.sum()), rel=1e-4
    )
    assert found.in_fisher["isotropic"] == pytest.approx((1 / 6, 2 / 6, 1))
    assert found.use["isotropic"] == pytest.approx(1)
    F_bar = found.fisher.matrix.float()
    use = float(((errors @ F_bar) * errors).sum() / errors.square().sum() / (F_bar.trace() / 6))
    assert found.use["error"] == pytest.approx(use, rel=1e-4)
    assert found.error_use is not None
    assert found.error_use.value == pytest.approx(use, rel=1e-4)
    assert found.error_use.standard_error > 0
    assert found.n_held_out == len(x)
    # the top variance directions hold most of the activation's variance, the top Fisher ones most of the gradient's
    assert found.in_variance["x"][0] > found.in_fisher["x"][0]
    assert found.in_fisher["gradient"][0] > found.in_variance["gradient"][0]


def test_second_order_is_the_kl_of_small_errors() -> None:
    """With errors of 2 % of x in a network without attention, the KL is ½ eᵀ F e, with each token's own F."""
    toy, batches = make_positionwise_toy(), draw_batches(4, seed=1)
    found = measure(make_scaling_sae(0.98, d_model=6))
    x = toy.embed[torch.cat(batches)[:, 1:].flatten()]
    log_p, log_q = ((scale * x @ toy.unembed.W_U.T).log_softmax(-1) for scale in (1, 0.98))
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    assert found.kl_second_order == pytest.approx(float(kl), rel=0.1)
    assert found.error_use_own_token is not None
    expected = found.kl_second_order / found.kl_second_order_isotropic
    assert found.error_use_own_token.value == pytest.approx(expected)


def test_an_error_that_the_network_does_not_read_has_no_use() -> None:
    W_U = torch.zeros(11, 6)
    W_U[:, :3] = make_random_toy(seed=3).unembed.W_U[:, :3]
    toy = ToySubject(embed=make_random_toy(seed=3).embed, blocks=[lambda h: h], W_U=W_U)
    eye = torch.eye(6)
    keeps = torch.cat([eye[:3], -eye[:3]])  # x̂ has the first three dimensions of x: the error has the others
    found = measure(make_relu_sae(keeps.T, torch.zeros(6), keeps, torch.zeros(6)), toy)
    assert found.use["error"] == pytest.approx(0, abs=1e-6)
    assert found.use["x_hat"] > 1
    assert found.kl_second_order == pytest.approx(0, abs=1e-9)
    perfect = measure(make_scaling_sae(1.0, d_model=6))
    assert perfect.error_use is None
    assert "error" not in perfect.use


def test_numbers_of_directions_that_do_not_fit() -> None:
    sae = make_scaling_sae(1.0, d_model=6)
    for ks, n_draws in (((0, 1), 1), ((7,), 1), ((1,), 0)):
        with pytest.raises(UserError, match="must be at least 1, and one k at most the width 6"):
            measure_energy_against_use(
                make_positionwise_toy(), Site(HOOK, HOOK, sae), fit=draw_batches(1), held_out=draw_batches(1), ks=ks,
                n_draws=n_draws, seed=0,
            )  # fmt: skip
