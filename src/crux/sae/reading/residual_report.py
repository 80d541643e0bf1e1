"""From the effects of interventions, window by window, to the table and the ratios of the residual error."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from crux.sae.evaluation.intervention_effects import Effect
from crux.sae.evaluation.ratio_of_sums import ratio_of_sums

MIN_ERROR_SHARE = 1e-10
"""An error with a smaller share of Σ‖x‖² is rounding of float32: the SAE is the identity."""

RATIOS = {
    "rho_iso": ("sae", "isotropic"),
    "rho_error_cov": ("sae", "error_covariance"),
    "rho_cov": ("sae", "activation_covariance"),
    "rho_perm": ("sae", "permuted"),
    "rho_towards": ("sae", "towards_other"),
    "rho_sign": ("sae", "sign_flipped"),
    "rho_linear": ("linear", "isotropic_linear"),
    "rho_nonlinear": ("nonlinear", "isotropic_nonlinear"),
    "rho_without_massive": ("without_massive", "isotropic_without_massive"),
}
"""The two interventions whose mean KLs make each ratio."""

SUBSETS = ("rest", "pos0")
"""Positions ≥ 1 and position 0."""


class InterventionRow(NamedTuple):
    """The mean effect of an intervention over held-out tokens; random ones are averaged over their draws."""

    name: str
    kl: float
    """KL(clean ‖ intervened) at positions ≥ 1, nats per token."""
    kl_pos0: float
    """The same at position 0."""
    ce_increase: float
    """CE(intervened) − CE(clean) over all positions that have a next token, nats per prediction."""
    standard_error: float
    """Of `kl`, over windows; NaN with one window."""
    draws: tuple[float, ...]
    """`kl` of each draw; one number if nothing is drawn."""

    @property
    def spread(self) -> float:
        """(largest − smallest) / mean of `draws`; 0 if nothing is drawn or nothing changes."""
        mean = float(np.mean(self.draws))
        return (max(self.draws) - min(self.draws)) / mean if mean > 0 else 0.0


class Ratio(NamedTuple):
    """A ratio of mean KLs over the same tokens."""

    value: float | None
    """None if it is undefined: there is no error, or the noise changes nothing."""
    standard_error: float | None
    """Over windows, by linearisation; None without a value."""
    spread: float | None
    """(largest − smallest) / mean of the ratio over the draws of the noise; None without a value, 0 if nothing is drawn."""


class Comparison(NamedTuple):
    """The table and the ratios."""

    rows: tuple[InterventionRow, ...]
    ratios: dict[str, Ratio]
    ce_recovered: dict[str, float | None]
    note: str


class EffectSums:
    """Sums of KL and CE over the tokens of each window, by intervention."""

    def __init__(self) -> None:
        self._kl: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        self._ce: dict[str, float] = defaultdict(float)
        self._n: dict[str, int] = dict.fromkeys(SUBSETS, 0)
        self._n_predictions = 0
        self._energies = {subset: np.zeros(2) for subset in SUBSETS}

    def add_energies(self, error: Float[Tensor, "batch pos d"], x: Float[Tensor, "batch pos d"]) -> None:
        """Add a batch's Σ‖e‖² and Σ‖x‖²; call it once per batch."""
        squares = [values.square().sum(-1).cpu().double() for values in (error, x)]
        self._energies["pos0"] += [float(v[:, 0].sum()) for v in squares]
        self._energies["rest"] += [float(v[:, 1:].sum()) for v in squares]
        n_windows, n_positions = x.shape[:2]
        self._n["pos0"] += n_windows
        self._n["rest"] += n_windows * (n_positions - 1)
        self._n_predictions += n_windows * (n_positions - 1)

    def add(self, effect: Effect) -> None:
        """Add the effect of one intervention on a batch."""
        kl = effect.kl.cpu().double().numpy()
        self._kl[effect.name, "pos0"].append(kl[:, 0])
        self._kl[effect.name, "rest"].append(kl[:, 1:].sum(1))
        self._ce[effect.name] += float(effect.ce.cpu().double().sum())

    def names(self) -> list[str]:
        """Return the names of the interventions with the numbers of their draws, in the order in which they were added."""
        return list(self._ce)

    def kl(self, name: str, subset: str) -> Float[np.ndarray, "windows"]:
        """Return each window's part of the mean KL of a subset: their sum is the mean over its tokens."""
        return np.concatenate(self._kl[name, subset]) / self._n[subset]

    def ce(self, name: str) -> float:
        """Return the mean cross-entropy in nats per prediction."""
        return self._ce[name] / self._n_predictions

    def has_error(self, subset: str) -> bool:
        """Return whether the error is more than rounding."""
        error, x = self._energies[subset]
        return bool(error > MIN_ERROR_SHARE * x)


def compare_effects(effects: EffectSums, *, n_draws: int) -> Comparison:
    """Return the table and ratios of the interventions `clean`, those of `RATIOS` and any others; names of draws end in `#<draw>`."""
    draws: dict[str, list[str]] = defaultdict(list)
    for name in effects.names():
        draws[name.partition("#")[0]].append(name)
    assert all(len(names) in (1, n_draws) for names in draws.values())
    rows = tuple(_row(effects, name, names) for name, names in draws.items())
    ratios = {}
    for subset in SUBSETS:
        for name, (above, below) in RATIOS.items():
            ratio = _ratio(effects, draws[above][0], draws[below], subset) if effects.has_error(subset) else _UNDEFINED
            ratios[name + ("/pos0" if subset == "pos0" else "")] = ratio
    increase = {name: effects.ce(name) - effects.ce("clean") for name in ("sae", "linear", "nonlinear")}
    defined = increase["sae"] > 0 and (effects.has_error("rest") or effects.has_error("pos0"))
    # without its linear part, the nonlinear part of the error is left
    left = {"linear": increase["nonlinear"], "nonlinear": increase["linear"]}
    recovered = {name: 1 - value / increase["sae"] if defined else None for name, value in left.items()}
    return Comparison(rows, ratios, recovered, _describe_undefined(effects))


_UNDEFINED = Ratio(None, None, None)


def _row(effects: EffectSums, name: str, names: list[str]) -> InterventionRow:
    by_window = np.mean([effects.kl(draw, "rest") for draw in names], 0)
    n = len(by_window)
    error = float(by_window.std(ddof=1)) * n**0.5 if n > 1 else float("nan")
    return InterventionRow(
        name,
        kl=float(by_window.sum()),
        kl_pos0=float(np.mean([effects.kl(draw, "pos0").sum() for draw in names])),
        ce_increase=float(np.mean([effects.ce(draw) for draw in names])) - effects.ce("clean"),
        standard_error=error,
        draws=tuple(float(effects.kl(draw, "rest").sum()) for draw in names),
    )


def _ratio(effects: EffectSums, above: str, below: list[str], subset: str) -> Ratio:
    numerators, noise = effects.kl(above, subset), [effects.kl(draw, subset) for draw in below]
    found = ratio_of_sums(numerators, np.mean(noise, 0))
    if found is None:
        return _UNDEFINED
    totals = [float(draw.sum()) for draw in noise]
    inverse = [1 / total for total in totals if total > 0]
    spread = (max(inverse) - min(inverse)) / float(np.mean(inverse)) if len(inverse) == len(totals) else float("inf")
    return Ratio(found.value, found.standard_error, spread)


def _describe_undefined(effects: EffectSums) -> str:
    """Return for which positions there is no error to compare with noise, in one sentence."""
    if not (effects.has_error("rest") or effects.has_error("pos0")):
        return "the SAE reproduces its activation up to rounding: it has no error, and every ratio to noise of its length is undefined"
    for subset, where in (("rest", "positions after 0"), ("pos0", "position 0")):
        if not effects.has_error(subset):
            return f"at {where} the SAE reproduces its activation up to rounding: the ratios there are undefined"
    return ""
