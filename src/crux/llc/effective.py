"""The effective number of parameters at a cutoff ε: N_eff(ε) = 2 λ_B(ε) (Bushnaq et al. 2405.10927).

See docs/reference/learning_coefficients.md §5.

λ_B(ε) is the learning coefficient of the behavioural loss at nβ = 1/ε: how many directions cost more than ε. In finite-data singular
learning theory that, not the limit, is what a network trained on so much data has. While the loss is quadratic, with Hessian
eigenvalues a_i (Gauss–Newton), it is Σ_i a_i / (a_i + γ/nβ): a deterministic curve next to the sampled one. The two differ if
it is not: L = a w² + c w⁴ has N_eff = 1 for ε ≪ a²/c and 1/2 above.
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
from crux.llc.hessian import Spectrum, spectrum
from crux.llc.losses import Fixed
from crux.llc.options import Divergence

STARTS = 4
"""Random starts of the Lanczos quadrature."""

SEED = 0
"""Of them: they decide nothing."""


class Effective(NamedTuple):
    """N_eff at each nβ."""

    nbeta: Float[Tensor, "nbeta"]
    n_eff: Float[Tensor, "nbeta"]
    """Sampled: 2 nβ E[L_B]."""
    standard_error: Float[Tensor, "nbeta"]
    quadratic: Float[Tensor, "nbeta"]
    """From the Gauss–Newton spectrum."""
    spectrum: Spectrum
    """That spectrum, one row."""
    llc: LLC
    """What was sampled."""

    @property
    def epsilon(self) -> Float[Tensor, "nbeta"]:
        """The cutoff, in units of the loss."""
        return 1 / self.nbeta


def gauss_newton_spectrum(
    outputs: Outputs, params: Mapping[str, Float[Tensor, "case ..."]], data: Fixed, divergence: Divergence
) -> Spectrum:
    """Return the eigenvalues of the behavioural loss's Hessian, one row per case; for many parameters a Lanczos quadrature of them."""
    at = Coordinates(params, free=None)
    w = at.start(STARTS)
    batch = data.at(0, [(0, 0)] * len(w))
    return spectrum(gauss_newton_product(outputs, at, w, batch, divergence), w, rows_a_case=STARTS, seed=SEED)


def quadratic_n_eff(
    found: Spectrum, *, nbeta: Float[Tensor, "nbeta"], gamma: Float[Tensor, "#nbeta"]
) -> Float[Tensor, "row nbeta"]:
    """Return Σ_i a_i / (a_i + γ/nβ) of each row."""
    a = found.values.clamp(min=0)[:, None]
    floor = (gamma / nbeta)[:, None]
    share = torch.where(a > 0, a / (a + floor).clamp(min=torch.finfo(a.dtype).tiny), 0)
    return (found.weights[:, None] * share).sum(2)


def rank(found: Spectrum, *, relative: float) -> Float[Tensor, "row"]:
    """Return how many eigenvalues exceed this share of the largest: N_eff's value for ε → 0, as far as the numbers can tell."""
    return (found.weights * (found.values > relative * found.largest[:, None])).sum(1)


def effective_parameters(
    outputs: Outputs,
    params: Mapping[str, Float[Tensor, "1 ..."]],
    *,
    data: Fixed,
    divergence: Divergence,
    nbeta: Float[Tensor, "nbeta"],
    gamma: float,
    chains: ChainSettings,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> Effective:
    """Return the curve of one network, every nβ sampled next to the others.

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
    values = gauss_newton_spectrum(outputs, params, data, divergence)
    at = nbeta.double().cpu()
    return Effective(
        nbeta=at,
        n_eff=2 * llc.mean,
        standard_error=2 * llc.standard_error,
        quadratic=quadratic_n_eff(values, nbeta=at, gamma=torch.full_like(at, gamma))[0].cpu(),
        spectrum=values,
        llc=llc,
    )
