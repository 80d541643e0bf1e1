"""From the options to chains, and from estimates to the report: what the experiments that sample share."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.llc.chains import ChainSettings, Checkpoint
from crux.llc.estimate import LLC, SHIFT, NotAMinimumWarning, estimate_llc
from crux.llc.explain import explain
from crux.llc.losses import Fixed, Loss, Minibatches
from crux.llc.options import SamplerName, Sampling
from crux.llc.samplers.hmc import HMC
from crux.llc.samplers.interface import Sampler
from crux.llc.samplers.rmsprop_sgld import RMSPROP
from crux.llc.samplers.sgld import SGLD
from crux.runs.life_cycle import ActiveRun

SECONDS = 20.0
"""Between two checkpoints of chains."""


def nbeta_tensor(options: Sampling) -> Float[Tensor, "nbeta"]:
    """Return the values of nβ, float64."""
    return torch.tensor(options.nbetas, dtype=torch.float64)


def make_sampler(options: Sampling) -> Sampler:
    """Return how chains move."""
    match options.sampler:
        case SamplerName.sgld:
            return SGLD()
        case SamplerName.rmsprop_sgld:
            return RMSPROP
        case SamplerName.mala:
            return HMC(leapfrogs=1, whitened=options.whitened)
        case SamplerName.hmc:
            return HMC(leapfrogs=options.leapfrogs, whitened=options.whitened)


def chain_settings(options: Sampling, *, default_step_size: Float[Tensor, "case"] | None, cases: int) -> ChainSettings:
    """Return the chains that the options describe; their `step_size` takes precedence over the default."""
    size = options.step_size
    step_size = default_step_size if size is None else torch.full((cases,), size, dtype=torch.float64)
    return ChainSettings(
        make_sampler(options), options.chains, options.burn_in, options.draws, options.every, step_size
    )


def checkpoint(run: ActiveRun, name: str) -> Checkpoint:
    """Return where the chains of an estimate are saved while its run is unfinished; `name` is unique within the run."""
    return Checkpoint(run.folder.intermediate / f"{name}.safetensors", SECONDS)


def sample_cases(
    options: Sampling,
    run: ActiveRun,
    loss: Loss,
    params: Mapping[str, Float[Tensor, "case ..."]],
    *,
    name: str,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    data: Fixed,
    gradient_data: Fixed | Minibatches | None = None,
    step_size: Float[Tensor, "case"] | None = None,
) -> LLC:
    """Estimate all cases as one program, or continue an earlier start of it.

    `explain_cases` reports for every case that a w* is not a minimum, in place of the warning about the worst.

    Args:
        name: of the estimate, unique within the run.
        data: what L(w) and L(w*) are measured on.
        gradient_data: what the chains follow the gradient of; None: the same.
        step_size: ε unless the options say it; None: automatic.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotAMinimumWarning)
        return estimate_llc(
            loss,
            params,
            gradient_data=data if gradient_data is None else gradient_data,
            evaluation_data=data,
            nbeta=nbeta,
            gamma=gamma,
            chains=chain_settings(options, default_step_size=step_size, cases=len(nbeta)),
            seeds=[run.seed + i for i in range(len(nbeta))],
            checkpoint=checkpoint(run, name),
        )


Curve = tuple[list[float], list[float], list[float], list[float], float]
"""nβ, estimate, standard error, prediction, λ: what `llc_trend` draws."""


def trend_curve(llc: LLC, cases: slice, *, predicted: Sequence[float], known: float) -> Curve:
    """Return the curve of some cases over nβ."""
    nbeta, mean, error = (v[cases].tolist() for v in (llc.nbeta, llc.mean, llc.standard_error))
    return nbeta, mean, error, list(predicted[cases]), known


def table_rows(
    names: Sequence[str], llc: LLC, *, predicted: Sequence[float], known: Sequence[float | None]
) -> list[list[str]]:
    """Return one row per case for `table`."""
    return [
        [
            name,
            f"{float(llc.nbeta[i]):.3g}",
            f"{float(llc.mean[i]):.4g} ± {float(llc.standard_error[i]):.2g}",
            f"{predicted[i]:.4g}",
            "" if known[i] is None else format(known[i], ".4g"),
            f"{float(llc.r_hat[i]):.3f}",
            f"{float(llc.ess[i]):.0f}",
            f"{float(llc.gradient_norm[i]):.2g}",
            warning_words(llc, i),
        ]
        for i, name in enumerate(names)
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows of `table_rows` as a Markdown table."""
    return markdown_table(["case", "nβ", "λ̂", "predicted", "λ", "R-hat", "ESS", "gradient norm", ""], rows)


def warning_words(llc: LLC, case: int) -> str:
    """Return in a word or two what is wrong with a number; empty if nothing is."""
    wrong = ["not a minimum"] if float(llc.shift[case]) > SHIFT else []
    return ", ".join(wrong + (["left its basin"] if llc.escaped[case] else []))


def explain_cases(names: Sequence[str], llc: LLC, *, only: Sequence[int] | None = None) -> list[str]:
    """Return what `explain` says beyond the number, one line for each case (all, or some) with something to say."""
    lines = []
    for i in range(len(names)) if only is None else only:
        if rest := explain(llc, i)[1:]:
            lines.append(f"- {names[i]}, nβ = {float(llc.nbeta[i]):.3g}: {'; '.join(rest)}")
    return lines


def standard_errors_off(llc: LLC, predicted: Sequence[float]) -> list[float]:
    """Return the distance of each estimate from its prediction, in standard errors."""
    return [float((llc.mean[i] - value) / llc.standard_error[i].clamp(min=1e-300)) for i, value in enumerate(predicted)]


def arrays(llc: LLC, prefix: str) -> dict[str, Tensor]:
    """Return what the run folder keeps of an estimate."""
    names = (
        "nbeta", "mean", "standard_error", "predicted", "unbiased", "r_hat", "ess", "per_chain", "loss_at_start", "gradient_norm",
        "largest", "smallest", "step_size", "gamma", "acceptance", "escaped", "trace", "distance",
    )  # fmt: skip
    return {f"{prefix}{name}": getattr(llc, name).clone() for name in names}  # files share no storage
