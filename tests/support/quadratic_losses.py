"""Quadratic losses ½ Σ a_i w_i², whose estimates are known exactly, and default arguments for estimates."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.chains import ChainSettings
from crux.llc.estimate import LLC, estimate_llc
from crux.llc.losses import NO_DATA, Batch
from crux.llc.samplers.sgld import SGLD

EIGENVALUES = (1.0, 1.0, 0.5, 0.1, 0.02)
"""Eigenvalues of the quadratic loss in docs/reference/learning_coefficients.md §3."""


def quadratic(p: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return ½ Σ a_i w_i² of every row."""
    a = torch.tensor(EIGENVALUES, dtype=p["w"].dtype)
    return (a[: p["w"].shape[1]] * p["w"].square()).sum(1) / 2


def values(*numbers: float) -> Float[Tensor, "case"]:
    """Return numbers, usually one per case, as a float64 tensor."""
    return torch.tensor(numbers, dtype=torch.float64)


def estimate(loss: Any = quadratic, **given: Any) -> LLC:
    """Estimate from short chains around w* = 0 in five coordinates; `given` replaces any argument or chain setting."""
    n = len(given.get("nbeta", [0]))
    chains = ChainSettings(SGLD(), n_chains=4, burn_in=50, draws=50, every=1, step_size=None)
    chains = chains._replace(**{key: given.pop(key) for key in ChainSettings._fields if key in given})
    settings: dict[str, Any] = {
        "params": {"w": torch.zeros(n, 5, dtype=torch.float64)},
        "gradient_data": NO_DATA,
        "evaluation_data": NO_DATA,
        "nbeta": values(1000.0),
        "gamma": values(*[1.0] * n),
        "seeds": list(range(n)),
    }
    return estimate_llc(loss, **settings | given, chains=chains)
