"""How well the length of an SAE's error can be predicted: from the length of the activation, the token, the loss and the number of codes.

Engels et al. 2410.14670 (§4) find that ‖e‖² is predictable from the activation. Every predictor is fitted on training documents and
scored on held-out documents, over positions ≥ 1 that have a next token.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from crux.sae.evaluation.reconstruction_passes import Reconstructed
from crux.sae.losses.readout import chunked_cross_entropy
from crux.subjects.subject import Subject

PRIOR_TOKENS = 5.0
"""Number of tokens of average error that are added to each token's own mean, so that rare tokens do not fit their noise."""

PREDICTORS = ("norm", "loss", "l0", "token", "together", "activation")
"""What ‖e‖² is predicted from; `predict_error_norm` says what each is."""


class TokenFacts(NamedTuple):
    """Numbers per token, at positions ≥ 1 that have a next token: 20 bytes a token."""

    squared_error: Float[np.ndarray, "tokens"]
    """‖e‖²."""
    squared_norm: Float[np.ndarray, "tokens"]
    """‖x‖² of the activation that the SAE writes."""
    loss: Float[np.ndarray, "tokens"]
    """Cross-entropy of the clean prediction of the next token, in nats."""
    l0: Float[np.ndarray, "tokens"]
    """Number of codes that are not zero."""
    token: Int[np.ndarray, "tokens"]
    """The token that is read."""

    @classmethod
    def join(cls, parts: Sequence["TokenFacts"]) -> "TokenFacts":
        """Return the facts of several batches as one."""
        return cls._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


@torch.no_grad()
def token_facts(subject: Subject, batch: Reconstructed) -> TokenFacts:
    """Return the facts of one batch, whose clean pass must have been run with `final=True`."""
    assert batch.clean.final is not None
    W_U, b_U, softcap = subject.unembed
    inner = slice(1, -1)
    final, labels = batch.clean.final[:, inner].flatten(0, 1), batch.tokens[:, 2:].flatten()
    loss = chunked_cross_entropy(final, W_U, b_U=b_U, softcap=softcap, labels=labels) if len(labels) else final.sum(-1)
    l0 = (batch.codes != 0).sum(-1).view(batch.tokens.shape)[:, inner].flatten()
    squared = [v[:, inner].square().sum(-1).flatten() for v in (batch.error, batch.x)]
    error, x, loss, l0 = (column.float().cpu().numpy() for column in (*squared, loss, l0))
    return TokenFacts(error, x, loss, l0, batch.tokens[:, inner].flatten().int().cpu().numpy())


def predict_error_norm(
    fit: TokenFacts, held_out: TokenFacts, *, from_activation: Float[np.ndarray, "held_out_tokens"]
) -> dict[str, float | None]:
    """Return the R² of predictions of ‖e‖² on the held-out tokens, by predictor.

    R² = 1 − Σ(‖e‖² − prediction)² / Σ(‖e‖² − mean)², which is negative for a prediction worse than the held-out mean; None if ‖e‖² does
    not vary. The predictors: `norm` (‖x‖²), `loss`, `l0`, `token` (the token's mean of ‖e‖² in the fit, shrunk towards the overall
    mean), each in a linear regression of its own; `together`, all four in one; and `activation`, the given linear prediction from x.
    In the fit, a token's mean leaves out the token itself.
    """
    if min(len(fit.token), len(held_out.token)) == 0:  # windows of two tokens
        return dict.fromkeys(PREDICTORS)
    tokens_fit, tokens_held_out = _token_means(fit, held_out)
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "norm": (fit.squared_norm, held_out.squared_norm),
        "loss": (fit.loss, held_out.loss),
        "l0": (fit.l0, held_out.l0),
        "token": (tokens_fit, tokens_held_out),
    }
    results = {name: _regress(fit, held_out, {name: pair}) for name, pair in columns.items()}
    results["together"] = _regress(fit, held_out, columns)
    return results | {"activation": r_squared(held_out.squared_error, from_activation)}


def r_squared(truth: Float[np.ndarray, "*shape"], predicted: Float[np.ndarray, "*shape"]) -> float | None:
    """Return 1 − Σ(truth − predicted)² / Σ(truth − mean over the first axis)², pooled over the other axes; None if it does not vary."""
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    total = float(((truth - truth.mean(0)) ** 2).sum())
    if total <= 1e-12 * float((truth**2).sum()):
        return None
    return 1 - float(((truth - predicted) ** 2).sum()) / total


def _token_means(fit: TokenFacts, held_out: TokenFacts) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each token of the fit and of the held-out text, the shrunk mean of ‖e‖² of that token in the rest of the fit."""
    n_ids = 1 + int(max(fit.token.max(initial=0), held_out.token.max(initial=0)))
    squared = fit.squared_error.astype(np.float64)
    counts = np.bincount(fit.token, minlength=n_ids).astype(np.float64)
    sums = np.bincount(fit.token, weights=squared, minlength=n_ids)
    prior = PRIOR_TOKENS * squared.mean()
    others = (sums[fit.token] - squared + prior) / (counts[fit.token] - 1 + PRIOR_TOKENS)
    return others, ((sums + prior) / (counts + PRIOR_TOKENS))[held_out.token]


def _regress(
    fit: TokenFacts, held_out: TokenFacts, columns: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> float | None:
    """Fit a linear regression with a bias on the fit's columns and return its R² on the held-out ones."""
    design, test = (np.stack([pair[side] for pair in columns.values()], 1).astype(np.float64) for side in (0, 1))
    mean, scale = design.mean(0), design.std(0)
    varies = scale > 1e-9 * np.abs(mean)  # a fixed-k SAE has the same L0 at every token
    scale = np.where(varies, scale, 1.0)
    design, test = ((side - mean) / scale * varies for side in (design, test))
    target = fit.squared_error.astype(np.float64)
    weights = np.linalg.lstsq(design, target - target.mean(), rcond=1e-9)[0]
    return r_squared(held_out.squared_error, test @ weights + target.mean())
