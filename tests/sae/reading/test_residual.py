"""The residual error: an SAE without error, one whose error is noise, a linear error, and the evaluation of the same SAE."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.evaluate_sae import evaluate_sae
from crux.sae.reading.residual import ResidualReport, measure_residual
from tests.support.small_saes import make_random_sae, make_scaling_sae
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK, LATER = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"


def draw_batches(seed: int, *, n: int = 3, batch: int = 4, pos: int = 7, d_vocab: int = 11) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(d_vocab, (batch, pos), generator=generator) for _ in range(n)]


def measure(toy: ToySubject, site: Site, *, seed: int = 0, **sizes: int) -> ResidualReport:
    batches = {name: draw_batches(k, d_vocab=toy.d_vocab, **sizes) for k, name in enumerate(("fit", "held_out"))}
    return measure_residual(toy, site, **batches, n_draws=3, seed=seed)  # pyright: ignore[reportArgumentType]


def test_an_sae_without_error_has_no_ratios_and_says_so() -> None:
    found = measure(make_random_toy(seed=0), Site(HOOK, HOOK, make_scaling_sae(1.0, d_model=6)))
    assert {ratio.value for ratio in found.ratios.values()} == {None}
    assert "every ratio to noise of its length is undefined" in found.note
    assert found.linear_r2 is None
    assert found.fvu == 0
    assert found.ce_recovered == {"linear": None, "nonlinear": None}
    assert max(row.kl for row in found.rows) < 1e-6
    assert not any(name.startswith("rho") for name in found.metrics())


class NoisySAE(ReluSAE):
    """Reconstructs x plus an isotropic error whose norm is a random share of ‖x‖."""

    noise: torch.Generator

    def decode(self, codes: Codes) -> Tensor:
        x = super().decode(codes)
        direction = F.normalize(torch.randn(x.shape, generator=self.noise), dim=-1)
        return x + direction * x.norm(dim=-1, keepdim=True) * (0.1 + 0.3 * torch.rand(len(x), 1, generator=self.noise))


def test_an_error_that_is_isotropic_noise_has_ratio_1() -> None:
    toy = make_random_toy(seed=0, d_vocab=60, d_model=32)
    sae = NoisySAE(
        d_model=32, n_latents=64, init="paper", init_norm=1.0, subtract_b_dec=False, generator=torch.Generator()
    )  # fmt: skip
    sae.load_state_dict(make_scaling_sae(1.0, d_model=32).state_dict())
    sae.noise = torch.Generator().manual_seed(5)
    found = measure(toy, Site(HOOK, HOOK, sae), n=6, batch=32, pos=40)
    assert found.note == ""
    for name in ("rho_iso", "rho_perm", "rho_error_cov", "rho_sign", "rho_nonlinear", "rho_without_massive"):
        ratio = found.ratios[name]
        assert ratio.value == pytest.approx(1, abs=0.03 if name == "rho_iso" else 0.06), name
        assert ratio.standard_error is not None
        assert ratio.standard_error < 0.03
        assert ratio.spread is not None
        assert ratio.spread < 0.08  # the range of three draws, each with a standard error of 0.015
    assert found.linear_r2 == pytest.approx(0, abs=0.02)
    assert found.norm_deviation < 1e-5
    assert found.ratios["rho_iso/pos0"].value == pytest.approx(1, abs=0.2)


def test_an_error_along_what_the_network_reads_has_a_higher_ratio() -> None:
    """Only the first dimension reaches the logits; the errors of one SAE lie there, those of the other elsewhere."""
    W_U = torch.zeros(9, 6)
    W_U[:, 0] = torch.linspace(-2, 2, 9)
    generator = torch.Generator().manual_seed(0)
    toy = ToySubject(embed=torch.randn(9, 6, generator=generator), blocks=[lambda h: h], W_U=W_U)
    ratios = []
    for dimensions in (slice(0, 1), slice(1, 6)):
        sae = make_scaling_sae(1.0, d_model=6)
        with torch.no_grad():
            sae.W_enc[dimensions] *= 0.7
        ratios.append(measure(toy, Site(toy_hook := "blocks.0.hook_resid_pre", toy_hook, sae)).ratios["rho_iso"].value)
    assert ratios[0] is not None
    assert ratios[0] > 2
    assert ratios[1] == pytest.approx(0, abs=1e-6)


def test_a_shrunk_reconstruction_is_a_linear_error_and_is_corrected_by_its_norm() -> None:
    """No position reads another one here: the mean error that stands for the linear part at position 0 stays there."""
    random = make_random_toy(seed=0)
    toy = ToySubject(embed=random.embed, blocks=[lambda h: h + torch.tanh(h)] * 2, W_U=random.unembed.W_U)
    found = measure(toy, Site(HOOK, HOOK, make_scaling_sae(0.5, d_model=6)))
    rows = {row.name: row for row in found.rows}
    assert found.linear_r2 == pytest.approx(1)
    assert found.norm_r2["norm"] == pytest.approx(1)
    assert rows["norm_corrected"].kl < 1e-6 < 1e-2 < rows["sae"].kl
    assert rows["linear"].kl == pytest.approx(rows["sae"].kl, rel=1e-4)
    assert rows["nonlinear"].kl < 1e-6
    assert found.interaction == pytest.approx(0, abs=1e-5)
    assert found.ratios["rho_linear"].value == pytest.approx(found.ratios["rho_iso"].value, rel=0.2)


def test_the_rows_are_the_interventions_that_they_name() -> None:
    """KL and CE of x̂, of x − e and of clean against full logits, with the splits of the positions."""
    toy, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=20, seed=0)
    found = measure(toy, Site(HOOK, HOOK, sae))
    rows = {row.name: row for row in found.rows}
    tokens = torch.cat(draw_batches(1))
    clean = toy.clean(tokens, capture=[HOOK])
    assert clean.final is not None
    x = clean.activations[HOOK]
    x_hat = sae(x).detach()
    log_p = (clean.final @ toy.unembed.W_U.T).log_softmax(-1)
    values = {"clean": x, "sae": x_hat, "sign_flipped": 2 * x - x_hat}
    ce = {}
    for name, value in values.items():
        log_q = (toy.blocks[2](toy.blocks[1](value)) @ toy.unembed.W_U.T).log_softmax(-1)
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        ce[name] = F.cross_entropy(log_q[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert rows[name].kl == pytest.approx(float(kl[:, 1:].mean()), rel=1e-4, abs=1e-6)
        assert rows[name].kl_pos0 == pytest.approx(float(kl[:, 0].mean()), rel=1e-4, abs=1e-6)
        assert rows[name].ce_increase == pytest.approx(float(ce[name] - ce["clean"]), rel=1e-3, abs=1e-6)
    assert found.ratios["rho_sign"].value == pytest.approx(rows["sae"].kl / rows["sign_flipped"].kl)
    assert found.ratios["rho_iso"].value == pytest.approx(rows["sae"].kl / rows["isotropic"].kl)
    assert rows["isotropic"].kl == pytest.approx(sum(rows["isotropic"].draws) / 3)
    error = (x_hat - x)[:, 1:]
    assert found.fvu == pytest.approx(
        float(error.square().sum() / (x - x[:, 1:].mean((0, 1)))[:, 1:].square().sum()), rel=1e-4
    )


@pytest.mark.parametrize("write", [HOOK, LATER])
def test_the_sae_row_is_that_of_the_evaluation_for_transcoders_too(write: str) -> None:
    toy, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=20, seed=0)
    found = measure(toy, Site(HOOK, write, sae))
    (row,) = [row for row in found.rows if row.name == "sae"]
    metrics = evaluate_sae(
        toy, sae, hook=HOOK, output_hook=write, batches=draw_batches(1), mean_activation=torch.zeros(6)
    ).metrics
    assert row.kl == pytest.approx(metrics["kl/rest"], rel=1e-4)
    assert row.kl_pos0 == pytest.approx(metrics["kl/pos0"], rel=1e-4)
    assert row.ce_increase == pytest.approx(metrics["ce_increase"], rel=1e-3)


def test_the_parts_recover_what_is_left_without_them() -> None:
    found = measure(make_random_toy(seed=0), Site(HOOK, HOOK, make_random_sae(d_model=6, n_latents=20, seed=0)))
    rows = {row.name: row for row in found.rows}
    assert rows["sae"].ce_increase > 0
    for part, other in (("linear", "nonlinear"), ("nonlinear", "linear")):
        share = 1 - rows[other].ce_increase / rows["sae"].ce_increase
        assert found.ce_recovered[part] == pytest.approx(share)


def test_the_same_seed_gives_the_same_numbers() -> None:
    toy, site = make_random_toy(seed=0), Site(HOOK, HOOK, make_random_sae(d_model=6, n_latents=20, seed=0))
    first = measure(toy, site)
    assert measure(toy, site) == first
    other = measure(toy, site, seed=1)
    assert other.rows[1] == first.rows[1]  # nothing is drawn for the SAE itself
    assert other.ratios["rho_iso"] != first.ratios["rho_iso"]
    assert all(math.isfinite(value) for value in first.metrics().values())


def test_too_few_draws_or_windows() -> None:
    toy, site = make_random_toy(seed=0), Site(HOOK, HOOK, make_scaling_sae(0.5, d_model=6))
    batches = draw_batches(0)
    with pytest.raises(UserError, match="n_draws=2: the spread of noise needs at least 3 draws"):
        measure_residual(toy, site, fit=batches, held_out=batches, n_draws=2, seed=0)
    with pytest.raises(UserError, match="less than two windows"):
        measure_residual(toy, site, fit=batches, held_out=draw_batches(0, n=1, batch=1), n_draws=3, seed=0)
    with pytest.raises(UserError, match="the SAE reads 5 dimensions"):
        measure_residual(
            toy, site._replace(sae=make_scaling_sae(1, d_model=5)), fit=batches, held_out=batches, n_draws=3, seed=0
        )
