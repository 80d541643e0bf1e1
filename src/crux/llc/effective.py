"""The effective number of parameters at a cutoff ε: N_eff(ε) = 2 λ_B(ε) (Bushnaq et al. 2405.10927).

See docs/reference/learning_coefficients.md §5.

λ_B(ε) is the learning coefficient of the behavioural loss at nβ = 1/ε. It counts the directions in which the loss rises by more than
ε. For a finite amount of data, this value rather than the limit ε → 0 is the relevant one. For a quadratic loss with (Gauss–Newton)
Hessian eigenvalues a_i, N_eff = Σ_i a_i / (a_i + γ/nβ), a deterministic curve that can be compared with the sampled one. The two
differ if the loss is not quadratic: L = a w² + c w⁴ has N_eff = 1 for ε ≪ a²/c and N_eff = 1/2 for ε ≫ a²/c.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.behavioural import Outputs, behavioural_loss, gauss_newton_product
from crux.llc.chains import ChainSettings, Checkpoint
from crux.llc.coordinates import Coordinates
from crux.llc.estimate import LLC, estimate_llc
from crux.llc.hessian import Spectrum, estimate_spectrum
from crux.llc.losses import FixedData
from crux.llc.options import Divergence

N_STARTS = 4
"""Number of random starts of the Lanczos quadrature."""

SEED = 0
"""Seed of the random starts; results do not depend on it beyond the quadrature's error."""


class EffectiveParameters(NamedTuple):
    """The effective number of parameters at each nβ, sampled and from the spectrum."""

    nbeta: Float[Tensor, "nbeta"]
    n_eff: Float[Tensor, "nbeta"]
    """The sampled value, 2 nβ E[L_B]."""
    standard_error: Float[Tensor, "nbeta"]
    quadratic: Float[Tensor, "nbeta"]
    """The value for a quadratic loss with the Gauss–Newton spectrum."""
    spectrum: Spectrum
    """The Gauss–Newton spectrum, with one row."""
    llc: LLC
    """The sampled estimates of λ_B, one case per nβ."""

    @property
    def epsilon(self) -> Float[Tensor, "nbeta"]:
        """The cutoff ε = 1/nβ, in units of the loss."""
        return 1 / self.nbeta


def gauss_newton_spectrum(
    outputs: Outputs, params: Mapping[str, Float[Tensor, "case ..."]], data: FixedData, divergence: Divergence
) -> Spectrum:
    """Return the spectrum of the behavioural loss's Hessian, one row per case (a Lanczos quadrature for many parameters)."""
    coordinates = Coordinates(params, free=None)
    w = coordinates.start(N_STARTS)
    batch = data.get_batch(0, [(0, 0)] * len(w))  # fixed data are the same for any step, seed and chain
    return estimate_spectrum(
        gauss_newton_product(outputs, coordinates, w, batch, divergence), w, rows_per_case=N_STARTS, seed=SEED
    )


def quadratic_n_eff(
    spectrum: Spectrum, *, nbeta: Float[Tensor, "nbeta"], gamma: Float[Tensor, "#nbeta"]
) -> Float[Tensor, "row nbeta"]:
    """Return N_eff = Σ_i a_i / (a_i + γ/nβ) of each row of a spectrum."""
    a = spectrum.values.clamp(min=0)[:, None]
    floor = (gamma / nbeta).to(a)[:, None]
    share = torch.where(a > 0, a / (a + floor).clamp(min=torch.finfo(a.dtype).tiny), 0)
    return (spectrum.weights[:, None] * share).sum(2)


def spectrum_rank(spectrum: Spectrum, *, relative: float) -> Float[Tensor, "row"]:
    """Return the number of eigenvalues above `relative` times the largest: the numerical limit of N_eff for ε → 0."""
    return (spectrum.weights * (spectrum.values > relative * spectrum.largest[:, None])).sum(1)


def effective_parameters(
    outputs: Outputs,
    params: Mapping[str, Float[Tensor, "1 ..."]],
    *,
    data: FixedData,
    divergence: Divergence,
    nbeta: Float[Tensor, "nbeta"],
    gamma: float,
    chains: ChainSettings,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> EffectiveParameters:
    """Estimate the effective number of parameters of one network at all nβ, sampled as one batch.

    Raises:
        UserError: as `estimate_llc` does.
    """
    theta = {name: value.expand(len(nbeta), *value.shape[1:]) for name, value in params.items()}
    llc = estimate_llc(
        behavioural_loss(outputs, params, divergence),
        theta,
        gradient_data=data,
        evaluation_data=data,
        nbeta=nbeta,
        gamma=torch.full_like(nbeta, gamma),
        chains=chains,
        seeds=[seed + i for i in range(len(nbeta))],
        checkpoint=checkpoint,
    )
    spectrum = gauss_newton_spectrum(outputs, params, data, divergence)
    nbeta_cpu = nbeta.double().cpu()
    return EffectiveParameters(
        nbeta=nbeta_cpu,
        n_eff=2 * llc.mean,
        standard_error=2 * llc.standard_error,
        quadratic=quadratic_n_eff(spectrum, nbeta=nbeta_cpu, gamma=torch.full_like(nbeta_cpu, gamma))[0].cpu(),
        spectrum=spectrum,
        llc=llc,
    )
