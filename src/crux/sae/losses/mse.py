"""The mean squared error between activations, at the SAE's hook point and at later ones."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor


def mse(
    reconstruction: Float[Tensor, "... d"], target: Float[Tensor, "... d"], *, weight: Float[Tensor, "..."] | None
) -> Float[Tensor, ""]:
    """Return the mean over tokens *and* dimensions of (x̂ − x)², in squared activation units.

    Tokens of `weight` 0 (not 1) are left out. The paper writes ‖x̂ − x‖², a sum over d; its code, and so its coefficients,
    take the mean (docs/reference/end_to_end_saes.md §2).
    """
    per_token = (reconstruction - target).float().square().mean(-1)
    return per_token.mean() if weight is None else (per_token * weight).sum() / weight.sum()


def downstream_mse(
    spliced: Mapping[str, Float[Tensor, "batch pos d"]],
    clean: Mapping[str, Float[Tensor, "batch pos d"]],
    *,
    weight: Float[Tensor, "batch pos"] | None,
) -> Float[Tensor, ""]:
    """Return (1 / number of hook points) · Σ_k mse(â⁽ᵏ⁾, a⁽ᵏ⁾) over the hook points of `spliced`.

    This is eq. 1 of Braun et al. 2405.12241, as in the authors' code: raw residuals without layer norm or variance weighting.
    """
    assert spliced, "a downstream loss needs at least one later hook point"
    terms = [mse(activation, clean[hook], weight=weight) for hook, activation in spliced.items()]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total / len(terms)
