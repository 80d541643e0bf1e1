"""Shared parts of the experiments that sample: chains from options, and reports from estimates."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.llc.chains import ChainSettings, Checkpoint
from crux.llc.estimate import LLC, MAX_SHIFT, NotAMinimumWarning, estimate_llc
from crux.llc.explain import explain_estimate
from crux.llc.losses import ChainLoss, FixedData, Minibatches
from crux.llc.options import SamplerName, Sampling
from crux.llc.samplers.hmc import HMC
from crux.llc.samplers.interface import Sampler
from crux.llc.samplers.rmsprop_sgld import RMSPROP
from crux.llc.samplers.sgld import SGLD
from crux.runs.life_cycle import ActiveRun

CHECKPOINT_SECONDS = 20.0
"""Time between two checkpoints of the chains, in seconds."""


def nbeta_tensor(options: Sampling) -> Float[Tensor, "nbeta"]:
    """Return the values of nβ, float64."""
    return torch.tensor(options.nbetas, dtype=torch.float64)


def make_sampler(options: Sampling) -> Sampler:
    """Build the sampler that the options describe."""
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
    """Build the chain settings that the options describe; `options.step_size` takes precedence over the default."""
    size = options.step_size
    step_size = default_step_size if size is None else torch.full((cases,), size, dtype=torch.float64)
    return ChainSettings(
        make_sampler(options), options.chains, options.burn_in, options.draws, options.every, step_size
    )


def chain_checkpoint(run: ActiveRun, name: str) -> Checkpoint:
    """Return the checkpoint of an estimate's chains in an unfinished run; `name` must be unique within the run."""
    return Checkpoint(run.folder.intermediate / f"{name}.safetensors", CHECKPOINT_SECONDS)


def sample_cases(
    options: Sampling,
    run: ActiveRun,
    loss: ChainLoss,
    params: Mapping[str, Float[Tensor, "case ..."]],
    *,
    name: str,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    data: FixedData,
    gradient_data: FixedData | Minibatches | None = None,
    step_size: Float[Tensor, "case"] | None = None,
) -> LLC:
    """Estimate all cases as one batch, or continue from the checkpoint of an earlier start.

    The warning that a w* is not a minimum is suppressed, because `explain_cases` reports it for every case.

    Args:
        name: name of the estimate, unique within the run.
        data: data on which L(w) and L(w*) are computed.
        gradient_data: data on which the chains' gradients are computed; None: the same data.
        step_size: ε, unless the options give it; None: the default of `ChainSettings`.
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
            checkpoint=chain_checkpoint(run, name),
        )


TrendCurve = tuple[list[float], list[float], list[float], list[float], float]
"""Values of nβ, estimates, standard errors and predictions, and λ: one curve of `llc_trend`."""


def trend_curve(llc: LLC, cases: slice, *, predicted: Sequence[float], known: float) -> TrendCurve:
    """Return the estimates of some cases as a curve over nβ."""
    nbeta, mean, error = (v[cases].tolist() for v in (llc.nbeta, llc.mean, llc.standard_error))
    return nbeta, mean, error, list(predicted[cases]), known


def estimate_rows(
    names: Sequence[str], llc: LLC, *, predicted: Sequence[float], known: Sequence[float | None]
) -> list[list[str]]:
    """Return the rows of `estimate_table`, one per case."""
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


def estimate_table(rows: Sequence[Sequence[str]]) -> str:
    """Format the rows of `estimate_rows` as a Markdown table."""
    return markdown_table(["case", "nβ", "λ̂", "predicted", "λ", "R-hat", "ESS", "gradient norm", ""], rows)


def warning_words(llc: LLC, case: int) -> str:
    """Name the problems of an estimate in a few words; return an empty string if there are none."""
    problems = ["not a minimum"] if float(llc.shift[case]) > MAX_SHIFT else []
    return ", ".join(problems + (["left its basin"] if llc.escaped[case] else []))


def explain_cases(names: Sequence[str], llc: LLC, *, only: Sequence[int] | None = None) -> list[str]:
    """Explain the problems of estimates, one line per case that has any; `only` restricts the cases."""
    lines = []
    for i in range(len(names)) if only is None else only:
        if problems := explain_estimate(llc, i)[1:]:
            lines.append(f"- {names[i]}, nβ = {float(llc.nbeta[i]):.3g}: {'; '.join(problems)}")
    return lines


def errors_from_prediction(llc: LLC, predicted: Sequence[float]) -> list[float]:
    """Return the difference of each estimate from its prediction, in standard errors."""
    return [float((llc.mean[i] - value) / llc.standard_error[i].clamp(min=1e-300)) for i, value in enumerate(predicted)]


def estimate_arrays(llc: LLC, prefix: str) -> dict[str, Tensor]:
    """Return the arrays of an estimate that are saved in the run folder."""
    names = (
        "nbeta", "mean", "standard_error", "predicted", "unbiased", "r_hat", "ess", "per_chain", "loss_at_start", "gradient_norm",
        "largest", "smallest", "step_size", "gamma", "acceptance", "escaped", "trace", "distance",
    )  # fmt: skip
    return {f"{prefix}{name}": getattr(llc, name).clone() for name in names}  # safetensors files must not share storage
