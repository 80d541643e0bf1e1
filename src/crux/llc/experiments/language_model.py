"""The learning coefficient of some parameters of a language model, on text.

The loss is the mean cross-entropy of a sequence's predictions. What the chains feel and what is measured are chosen apart: minibatches
that each chain draws from all of one part of the text, or fixed sequences; L(w) and L(w*) are on the same fixed sequences always.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from crux.config.schema import Config
from crux.llc.experiments.sampling import arrays, estimated, explained, keys, nbetas, table, table_rows
from crux.llc.figures.llc_traces import llc_traces
from crux.llc.language_models import moving, next_token_loss
from crux.llc.losses import Fixed, Minibatches, over_chains
from crux.llc.options import Split
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder
from crux.sae import assemble
from crux.text.held_out import spread_batches
from crux.text.tokens import Tokens


def windows(tokens: Tokens, split: Split, *, context: int, n: int | None) -> Int[Tensor, "sample pos"]:
    """Sequences of a part of the text, evenly spread over it; all that there are where n is None."""
    stream: np.ndarray = tokens.train if split is Split.train else tokens.held_out
    wanted = len(stream) if n is None else n * context
    return torch.cat(list(spread_batches(stream, context=context, batch=1024, n_tokens=wanted)))


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """One estimate at each nβ. There is no known answer to check against: what is checked is that the chains mixed."""
    llc = keys(config)
    assert llc.parameters is not None
    assert llc.samples is not None
    assert llc.gamma is not None
    assert llc.gradient_text is not None
    assert llc.evaluation_text is not None
    subject = assemble.load(config, torch.float32)
    moves = moving(subject.model, llc.parameters)
    tokens, context, device = assemble.load_tokens(config), config.model.context, subject.device
    evaluation = Fixed(windows(tokens, llc.evaluation_text, context=context, n=llc.samples).to(device))
    gradient: Fixed | Minibatches = evaluation
    if llc.minibatch is not None:
        pool = windows(tokens, llc.gradient_text, context=context, n=None).to(device)
        gradient = Minibatches(pool, size=llc.minibatch)
    elif llc.gradient_text is not llc.evaluation_text:
        gradient = Fixed(windows(tokens, llc.gradient_text, context=context, n=llc.samples).to(device))
    nbeta = nbetas(llc)
    found = estimated(
        llc,
        over_chains(next_token_loss(subject.model)),
        {name: value.expand(len(nbeta), *value.shape) for name, value in moves.items()},
        nbeta=nbeta,
        gamma=torch.full_like(nbeta, llc.gamma),
        step_size=None,
        gradient_data=gradient,
        evaluation_data=evaluation,
        seed=config.seed,
        free=None,
    )
    n = sum(value.numel() for value in moves.values())
    names = [", ".join(llc.parameters)] * len(nbeta)
    lines = [
        f"{n:,} parameters of {len(moves)} tensors move; loss at w* {float(found.loss_at_start[0]):.4g} nats a token on "
        f"{llc.samples} sequences of {context} tokens ({llc.evaluation_text.value}); the chains feel {felt(config)}",
        "",
        table(table_rows(names, found, predicted=found.predicted.tolist(), known=[None] * len(nbeta))),
        "",
        *explained(names, found),
    ]
    checks, metrics = [], {"parameters": float(n), "loss": float(found.loss_at_start[0])}
    for i, nb in enumerate(nbeta.tolist()):
        checks.append(Check(f"nβ = {nb:.0e}: R-hat", float(found.r_hat[i]), 0, 1.1))
        metrics |= {
            f"llc/{nb:.0e}": float(found.mean[i]), f"standard_error/{nb:.0e}": float(found.standard_error[i]),
            f"r_hat/{nb:.0e}": float(found.r_hat[i]), f"ess/{nb:.0e}": float(found.ess[i]),
            f"gradient_norm/{nb:.0e}": float(found.gradient_norm[i]),
        }  # fmt: skip
        add_row(i + 1, {"llc": float(found.mean[i]), "standard_error": float(found.standard_error[i])})
    figure = llc_traces(
        [f"nβ = {nb:.0e}" for nb in nbeta.tolist()],
        found.trace.numpy(),
        mean=found.mean.tolist(),
        error=found.standard_error.tolist(),
        known=[None] * len(nbeta),
    )
    return Result(metrics, checks, {"traces": figure}, arrays(found, ""), "\n".join(lines).rstrip())


def felt(config: Config) -> str:
    """In words, the gradient's data."""
    llc = keys(config)
    assert llc.gradient_text is not None
    if llc.minibatch is not None:
        return f"{llc.minibatch} sequences drawn anew at every step ({llc.gradient_text.value})"
    same = llc.gradient_text is llc.evaluation_text
    return "the same ones" if same else f"{llc.samples} fixed sequences ({llc.gradient_text.value})"
