"""From the keys of `llc` to chains, and from estimates to the report: what the experiments with learning coefficients share."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.config.schema import Config
from crux.llc.estimate import LLC, SHIFT, NotAMinimumWarning, estimate_llc
from crux.llc.explain import explain
from crux.llc.losses import Fixed, Loss, Minibatches
from crux.llc.options import Llc, SamplerName
from crux.llc.samplers.hmc import HMC
from crux.llc.samplers.interface import Sampler
from crux.llc.samplers.rmsprop_sgld import RMSPropSGLD
from crux.llc.samplers.sgld import SGLD

RMSPROP = {"decay": 0.99, "floor": 0.1}
"""devinterp's constants."""


def keys(config: Config) -> Llc:
    """The experiment's own keys."""
    assert config.llc is not None, "the experiment's file sets them"
    return config.llc


def nbetas(llc: Llc) -> Float[Tensor, "nbeta"]:
    assert llc.nbetas is not None, "crux.llc.checks asks for them"
    return torch.tensor(llc.nbetas, dtype=torch.float64)


def sampler_of(llc: Llc) -> Sampler:
    """How chains move."""
    match llc.sampler:
        case SamplerName.sgld:
            return SGLD()
        case SamplerName.rmsprop_sgld:
            return RMSPropSGLD(**RMSPROP)
        case SamplerName.mala:
            return HMC(leapfrogs=1, whitened=bool(llc.whitened))
        case SamplerName.hmc:
            if llc.leapfrogs is None:
                raise UserError("llc.leapfrogs=null: sampler=hmc needs the number of steps of a move")
            return HMC(leapfrogs=llc.leapfrogs, whitened=bool(llc.whitened))
        case None:
            raise AssertionError("crux.llc.checks asks for it")


def estimated(
    llc: Llc,
    loss: Loss,
    params: Mapping[str, Float[Tensor, "case ..."]],
    *,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    step_size: Float[Tensor, "case"] | None,
    gradient_data: Fixed | Minibatches,
    evaluation_data: Fixed,
    seed: int,
    free: Mapping[str, Bool[Tensor, "..."]] | None,
) -> LLC:
    """All cases as one program, with the chains that the keys name; a `step_size` of the keys goes before the argument.

    That a w* is not a minimum is told by `explained`, of every case, in place of the warning about the worst.
    """
    assert llc.chains is not None
    assert llc.burn_in is not None
    assert llc.draws is not None
    assert llc.every is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAMinimumWarning)
        return estimate_llc(
            loss,
            params,
            gradient_data=gradient_data,
            evaluation_data=evaluation_data,
            nbeta=nbeta,
            gamma=gamma,
            step_size=torch.full_like(nbeta, llc.step_size) if llc.step_size is not None else step_size,
            sampler=sampler_of(llc),
            n_chains=llc.chains,
            burn_in=llc.burn_in,
            draws=llc.draws,
            every=llc.every,
            seeds=[seed + i for i in range(len(nbeta))],
            free=free,
        )


Curve = tuple[list[float], list[float], list[float], list[float], float]
"""nβ, estimate, standard error, prediction, λ: what `llc_trend` draws."""


def curve(found: LLC, of: slice, *, predicted: Sequence[float], known: float) -> Curve:
    """The cases of one name."""
    nbeta, mean, error = (v[of].tolist() for v in (found.nbeta, found.mean, found.standard_error))
    return nbeta, mean, error, list(predicted[of]), known


def table_rows(
    names: Sequence[str], found: LLC, *, predicted: Sequence[float], known: Sequence[float | None]
) -> list[list[str]]:
    """Return one row per case for `table`."""
    return [
        [
            name,
            f"{float(found.nbeta[i]):.3g}",
            f"{float(found.mean[i]):.4g} ± {float(found.standard_error[i]):.2g}",
            f"{predicted[i]:.4g}",
            "" if known[i] is None else format(known[i], ".4g"),
            f"{float(found.r_hat[i]):.3f}",
            f"{float(found.ess[i]):.0f}",
            f"{float(found.gradient_norm[i]):.2g}",
            verdict(found, i),
        ]
        for i, name in enumerate(names)
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows of `table_rows` as a Markdown table."""
    return markdown_table(["case", "nβ", "λ̂", "predicted", "λ", "R-hat", "ESS", "gradient norm", ""], rows)


def verdict(found: LLC, case: int) -> str:
    """In a word or two, what is wrong with a number; empty where nothing is."""
    wrong = ["not a minimum"] if float(found.shift[case]) > SHIFT else []
    return ", ".join(wrong + (["left its basin"] if found.escaped[case] else []))


def explained(names: Sequence[str], found: LLC, *, only: Sequence[int] | None = None) -> list[str]:
    """What `explain` has to say beyond the number, for those cases (all, or some) of which there is something."""
    told = []
    for i in range(len(names)) if only is None else only:
        name, rest = names[i], explain(found, i)[1:]
        if rest:
            told.append(f"- {name}, nβ = {float(found.nbeta[i]):.3g}: {'; '.join(rest)}")
    return told


def errors(found: LLC, predicted: Sequence[float]) -> list[float]:
    """Distances from the predictions in standard errors."""
    return [
        float((found.mean[i] - value) / found.standard_error[i].clamp(min=1e-300)) for i, value in enumerate(predicted)
    ]


def arrays(found: LLC, prefix: str) -> dict[str, Tensor]:
    """What is left of an estimate in the run folder."""
    names = (
        "nbeta", "mean", "standard_error", "predicted", "unbiased", "r_hat", "ess", "per_chain", "loss_at_start", "gradient_norm",
        "largest", "smallest", "step_size", "gamma", "acceptance", "escaped", "trace", "distance",
    )  # fmt: skip
    return {f"{prefix}{name}": getattr(found, name).clone() for name in names}  # files share no storage
