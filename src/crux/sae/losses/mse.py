"""Mean squared error between activations: the local loss and, summed over later layers, the downstream one."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor


def mse(
    reconstruction: Float[Tensor, "... d"], target: Float[Tensor, "... d"], *, weight: Float[Tensor, "..."] | None
) -> Float[Tensor, ""]:
    """mean over tokens *and* dimensions of (x̂ − x)², in squared activation units.

    `weight` (0 or 1 a token) leaves tokens out. The paper writes ‖x̂ − x‖², a sum over d; its code, and so its coefficients,
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
    """(1 / number of positions) · Σ_k mse(â⁽ᵏ⁾, a⁽ᵏ⁾) over the hook points of `spliced` (Braun et al. eq. 1, as coded).

    Raw residuals: no layer norm, no variance weighting, as in the paper.
    """
    assert spliced, "a downstream loss needs at least one later hook point"
    terms = [mse(activation, clean[hook], weight=weight) for hook, activation in spliced.items()]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total / len(terms)
