"""Passes in which an activation is replaced by something simpler: cross-entropy and KL of every held-out token.

The losses are kept token by token, so that shares of the loss can be given with a standard error over windows, and with position 0 apart.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from crux.config.progress import track
from crux.sae.architectures.sae import SAE
from crux.sae.evaluation.prediction_metrics import replace_with
from crux.sae.evaluation.predictions import compare_predictions
from crux.sae.evaluation.running_sums import SUBSETS
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.rules import Rules, predict_codes
from crux.subjects.subject import Subject

MAX_FILLED = 0.25
"""Share of the codes that are not zero above which a dense product is faster than a sparse one, and needs no more memory."""

Replacement = Callable[[slice], Float[np.ndarray, "tokens d_out"]]
"""Returns what replaces the activation at the tokens of some windows of the text, one window after the other."""


class TokenLosses(NamedTuple):
    """The losses of a spliced pass on every token."""

    ce: Float[np.ndarray, "windows predictions"]
    """Cross-entropy of the next token in nats, at every position but a window's last; float32."""
    kl: Float[np.ndarray, "windows context"]
    """KL(clean ‖ spliced) in nats, at every position; float32."""

    def means(self) -> dict[str, float]:
        """Return the means of `ce` and `kl`; with `/pos0` and `/rest`, of position 0 and of all others, split by the position read."""
        parts = zip(SUBSETS, (slice(None), slice(0, 1), slice(1, None)), strict=True)
        return {
            f"{name}{suffix}": float(values[:, part].mean(dtype=np.float64)) if values[:, part].size else float("nan")
            for suffix, part in parts
            for name, values in zip(self._fields, self, strict=True)
        }


class Estimate(NamedTuple):
    """A number that depends on losses, with its uncertainty."""

    value: float
    standard_error: float
    """Over windows, to first order; NaN for one window."""


def share_recovered(
    losses: TokenLosses, *, none: TokenLosses, all_of_it: TokenLosses, positions: slice = slice(None)
) -> Estimate:
    """Return R = (CE_none − CE) / (CE_none − CE_all) of the same windows: 0 if the splice is as bad as `none`, 1 if as good as `all_of_it`.

    The numerator and the denominator are means over tokens. The standard error is that of the ratio of two means over windows. NaN if
    the denominator is 0.

    Args:
        positions: of the predictions that count.
    """
    ours, worst, best = (
        item.ce[:, positions].mean(1, dtype=np.float64) for item in (losses, none, all_of_it)
    )  # windows have the same number of predictions
    n, denominator = len(ours), (worst - best).mean()
    if denominator == 0:
        return Estimate(np.nan, np.nan)
    value = (worst - ours).mean() / denominator
    rest = (worst - ours) - value * (worst - best)
    error = rest.std(ddof=1) / (np.sqrt(n) * abs(denominator)) if n > 1 else np.nan
    return Estimate(float(value), float(error))


def compare_losses(losses: TokenLosses, other: TokenLosses) -> Estimate:
    """Return the difference of two mean cross-entropies on the same windows, with its standard error over windows."""
    differences = (losses.ce - other.ce).mean(1, dtype=np.float64)
    n = len(differences)
    return Estimate(float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan)


@torch.no_grad()
def measure_replacements(
    subject: Subject,
    hook: str,
    windows: Int[np.ndarray, "windows context"],
    replacements: Mapping[str, Replacement],
    *,
    batch: int,
) -> dict[str, TokenLosses]:
    """Return the losses of the clean pass, as `clean`, and of one spliced pass for each replacement.

    Cross-entropy and KL are those of `evaluate_sae`, token by token. The clean pass of a batch is run once.

    Args:
        hook: hook point at which the activation is replaced.
        batch: windows per pass.
    """
    n, context = windows.shape
    losses = {
        name: TokenLosses(np.empty((n, context - 1), np.float32), np.zeros((n, context), np.float32))
        for name in ("clean", *replacements)
    }
    for first in track(range(0, n, batch), "replacing activations"):
        part = slice(first, min(first + batch, n))
        tokens = torch.from_numpy(windows[part]).to(subject.device)
        labels = F.pad(tokens[:, 1:], (0, 1)).flatten()
        clean = subject.clean(tokens, capture=[hook])
        assert clean.final is not None
        for name, replacement in replacements.items():
            value = torch.tensor(replacement(part), device=subject.device)
            spliced = subject.spliced(clean, {hook: replace_with(value)})
            finals = {"clean": clean.final.flatten(0, 1), "spliced": spliced.final.flatten(0, 1)}
            compared = compare_predictions(finals, labels=labels, unembed=subject.unembed)
            losses[name].kl[part] = compared.kl.view_as(tokens).float().cpu().numpy()
            for which, ce in ((name, "spliced"), ("clean", "clean")):
                losses[which].ce[part] = compared.ce[ce].view_as(tokens)[:, :-1].float().cpu().numpy()
    return losses


def spread_text(text: ReadText, max_tokens: int) -> ReadText:
    """Return at most `max_tokens` tokens of a text, in windows that are evenly spread over it, without activations."""
    context = text.windows.shape[1]
    n = min(len(text.windows), max(1, max_tokens // context))
    chosen = np.arange(n) * len(text.windows) // n
    tokens = (chosen[:, None] * context + np.arange(context)).reshape(-1)
    rows = text.codes.matrix()[tokens]
    codes = text.codes._replace(indptr=rows.indptr.astype(np.int64), latents=rows.indices, values=rows.data)
    return ReadText(text.windows[chosen], text.begins[tokens], codes, None)


def replace_by_vector(vector: Float[np.ndarray, "d_out"], text: ReadText) -> Replacement:
    """Return the replacement by the same vector everywhere: zero ablation, mean ablation."""

    def replace(part: slice) -> Float[np.ndarray, "tokens d_out"]:
        return np.broadcast_to(vector.astype(np.float32), (text.windows[part].size, len(vector))).copy()

    return replace


def replace_by_values(values: Float[np.ndarray, "tokens d_out"], text: ReadText) -> Replacement:
    """Return the replacement by given values, one per token."""
    context = text.windows.shape[1]
    return lambda part: values[part.start * context : part.stop * context]


def replace_by_sae(sae: SAE, text: ReadText) -> Replacement:
    """Return the replacement by the SAE's reconstruction from the codes of the text."""
    decode, context = build_decoder(sae), text.windows.shape[1]
    return lambda part: decode(text.codes.tokens(part.start * context, part.stop * context).matrix())


def replace_by_rules(sae: SAE, rules: Rules, text: ReadText) -> Replacement:
    """Return the replacement by the reconstruction from the codes that the rules predict: every code, also those that are zero."""
    decode, context = build_decoder(sae), text.windows.shape[1]
    # x̂ = (codes − floor) D + (floor D + b): the first factor is sparse
    floor = decode(rules.floor[None].astype(np.float32)) - decode(np.zeros((1, rules.n_latents), np.float32))

    def replace(part: slice) -> Float[np.ndarray, "tokens d_out"]:
        begins = text.begins[part.start * context : part.stop * context]
        return decode(predict_codes(rules, text.windows[part], begins).astype(np.float32)) + floor

    return replace


def build_decoder(sae: SAE) -> Callable[..., Float[np.ndarray, "tokens d_out"]]:
    """Return a function that decodes sparse or dense codes, tokens × latents, as `SAE.decode` does."""
    scale = sae.output_scale.detach().cpu().numpy()
    directions = sae.dictionary().detach().float().cpu().numpy() / scale
    bias = sae.b_dec.detach().float().cpu().numpy() / scale

    def decode(
        codes: scipy.sparse.csr_matrix | Float[np.ndarray, "tokens n_latents"],
    ) -> Float[np.ndarray, "tokens d_out"]:
        if isinstance(codes, scipy.sparse.csr_matrix):
            n_tokens = len(codes.indptr) - 1
            if codes.nnz > MAX_FILLED * n_tokens * len(directions):
                codes = codes.toarray()
        return (codes @ directions + bias).astype(np.float32)

    return decode
