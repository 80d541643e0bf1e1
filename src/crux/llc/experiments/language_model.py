"""The learning coefficient of some parameters of a language model, on text.

The loss is the mean cross-entropy of a sequence's predictions. L(w) and L(w*) are always computed on the same
fixed sequences. Gradients are computed either on fixed sequences or on minibatches that each chain draws from a part of the text.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from crux.llc.experiments.sampling import (
    estimate_arrays,
    estimate_rows,
    estimate_table,
    explain_cases,
    nbeta_tensor,
    sample_cases,
)
from crux.llc.figures.llc_traces import llc_traces
from crux.llc.language_models import next_token_loss, select_parameters
from crux.llc.losses import FixedData, Minibatches, map_over_chains
from crux.llc.options import LanguageModelJob, LanguageModelLlc, Split
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result, finite_or_none
from crux.sae.loading import check_embedding, load_model, load_tokens, write_text_report
from crux.text.held_out import spread_batches
from crux.text.tokens import Tokens
from crux.training.devices import choose_device


def text_windows(tokens: Tokens, split: Split, *, context: int, n: int | None) -> Int[Tensor, "sample pos"]:
    """Return n evenly spaced sequences of a part of the text, or all sequences if n is None."""
    stream: np.ndarray = tokens.train if split is Split.train else tokens.held_out
    wanted = len(stream) if n is None else n * context
    return torch.cat(list(spread_batches(stream, context=context, batch=1024, n_tokens=wanted)))


def result(job: LanguageModelJob, run: ActiveRun) -> Result:
    """Estimate at each nβ and check that the chains mixed; the learning coefficient itself is not known."""
    llc, context = job.llc, job.model.context
    tokens = load_tokens(job.data, model=job.model, cache=job.cache)
    write_text_report(tokens, run.folder.path)
    subject = load_model(job.model, device=choose_device(job.trainer.accelerator), dtype=torch.float32)
    check_embedding(tokens, subject)
    moves = select_parameters(subject.model, llc.parameters)
    evaluation, gradient = estimate_data(llc, tokens, context=context, device=subject.device)
    nbeta = nbeta_tensor(llc)
    estimate = sample_cases(
        llc,
        run,
        map_over_chains(next_token_loss(subject.model)),
        {name: value.expand(len(nbeta), *value.shape) for name, value in moves.items()},
        name="chains",
        nbeta=nbeta,
        gamma=torch.full_like(nbeta, llc.gamma),
        data=evaluation,
        gradient_data=gradient,
    )
    n, loss = sum(value.numel() for value in moves.values()), float(estimate.loss_at_start[0])
    names = [", ".join(llc.parameters)] * len(nbeta)
    lines = [
        f"{n:,} parameters of {len(moves)} tensors move; loss at w* {loss:.4g} nats per token on {llc.samples} sequences of "
        f"{context} tokens ({llc.evaluation_text.value}); gradients on {describe_gradient_data(llc)}",
        "",
        estimate_table(
            estimate_rows(names, estimate, predicted=estimate.predicted.tolist(), known=[None] * len(nbeta))
        ),
        "",
        *explain_cases(names, estimate),
    ]
    checks, metrics = [], {"parameters": float(n), "loss": loss}
    for i, nb in enumerate(nbeta.tolist()):
        checks.append(Check(f"nβ = {nb:.0e}: R-hat", float(estimate.r_hat[i]), 0, 1.1))
        metrics |= {
            f"llc/{nb:.0e}": float(estimate.mean[i]), f"standard_error/{nb:.0e}": float(estimate.standard_error[i]),
            # a chain that does not move has neither
            f"r_hat/{nb:.0e}": finite_or_none(float(estimate.r_hat[i])),
            f"ess/{nb:.0e}": finite_or_none(float(estimate.ess[i])),
            f"gradient_norm/{nb:.0e}": float(estimate.gradient_norm[i]),
        }  # fmt: skip
        run.add_row(i + 1, {"llc": float(estimate.mean[i]), "standard_error": float(estimate.standard_error[i])})
    figure = llc_traces(
        [f"nβ = {nb:.0e}" for nb in nbeta.tolist()],
        estimate.trace.numpy(),
        mean=estimate.mean.tolist(),
        error=estimate.standard_error.tolist(),
        known=[None] * len(nbeta),
    )
    return Result(metrics, checks, {"traces": figure}, estimate_arrays(estimate, ""), "\n".join(lines).rstrip())


def estimate_data(
    llc: LanguageModelLlc, tokens: Tokens, *, context: int, device: torch.device
) -> tuple[FixedData, FixedData | Minibatches]:
    """Return the data on which losses are computed, and those on which gradients are computed."""
    evaluation = FixedData(text_windows(tokens, llc.evaluation_text, context=context, n=llc.samples).to(device))
    if llc.minibatch is not None:
        pool = text_windows(tokens, llc.gradient_text, context=context, n=None).to(device)
        return evaluation, Minibatches(pool, size=llc.minibatch)
    if llc.gradient_text is llc.evaluation_text:
        return evaluation, evaluation
    return evaluation, FixedData(text_windows(tokens, llc.gradient_text, context=context, n=llc.samples).to(device))


def describe_gradient_data(llc: LanguageModelLlc) -> str:
    """Describe the data of the gradients in words."""
    if llc.minibatch is not None:
        return f"{llc.minibatch} sequences drawn anew at every step ({llc.gradient_text.value})"
    same = llc.gradient_text is llc.evaluation_text
    return "the same sequences" if same else f"{llc.samples} fixed sequences ({llc.gradient_text.value})"


EXPERIMENT = Experiment(LanguageModelJob, result)
