"""Output-side explanations: the tokens whose log-probability a latent changes, measured in contexts in which it fires.

The effect of a latent is the mean over contexts of Δ = log q − log p, centred over the vocabulary, when α w̄ is added at a token on
which the latent fires, with α such that the mean KL(clean ‖ steered) of this token's prediction is about `budget` nats. It is scored on
other documents: there the latent is ablated, and the actual effect of its presence, log p − log p_ablated, is correlated with the
predicted one. The null is the effect of another latent. Next to it stands the logit lens, the direct path of the direction alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.progress import progress
from crux.sae.reading.context_pairs import ContextPairs
from crux.sae.reading.interventions import ContextPool, log_probabilities, run_chunks
from crux.sae.reading.lens import lens_effects, norm_lens_effects
from crux.sae.reading.prediction_effects import centre_effects, correlate, measure_top_overlap
from crux.sae.reading.steering_strength import find_strengths, measure_mean_kl, quadratic_forms

MIN_CONTEXTS = 2
"""Least number of contexts of a latent; with fewer there is no standard error."""


class TokenEffects(NamedTuple):
    """The tokens with the largest effects of each latent, strongest first; without meaning for a latent with too few contexts."""

    tokens: Int[np.ndarray, "n top"]
    """Token ids; −1 for a latent with too few contexts."""
    mean: Float[np.ndarray, "n top"]
    """Mean centred change of the log-probability over contexts, in nats."""
    standard_error: Float[np.ndarray, "n top"]
    """Standard error of this mean over contexts."""
    same_sign: Float[np.ndarray, "n top"]
    """Share of contexts in which the change has the sign of the mean."""


class OutputEffects(NamedTuple):
    """What the network does with some latents at its output; NaN for a latent that fires in too few contexts."""

    latents: Int[np.ndarray, "n"]
    n_contexts: Int[np.ndarray, "n"]
    """Number of contexts in which the effects were measured."""
    alpha: Float[np.ndarray, "n"]
    """Length of the vector that was added, in units of the activation."""
    kl: Float[np.ndarray, "n"]
    """Mean KL(clean ‖ steered) at this length, in nats."""
    promoted: TokenEffects
    suppressed: TokenEffects
    lens_promoted: Int[np.ndarray, "n top"]
    """The tokens that the logit lens has as most promoted: w̄ W_Uᵀ."""
    lens_overlap: Float[np.ndarray, "n"]
    """Share of the 20 most promoted tokens that are among the 20 of the logit lens."""
    lens_pearson: Float[np.ndarray, "n"]
    """Pearson correlation over the vocabulary of the effect and the logit lens."""
    norm_lens_overlap: Float[np.ndarray, "n"]
    """As `lens_overlap`, for the exact final norm: J_norm(x_t) w̄ W_Uᵀ, averaged over the contexts."""
    norm_lens_pearson: Float[np.ndarray, "n"]
    held_out_contexts: Int[np.ndarray, "n"]
    """Number of contexts in other documents in which the latent was ablated."""
    held_out_score: Float[np.ndarray, "n"]
    """Mean over these contexts of the Pearson correlation over the vocabulary of the predicted and the actual effect."""
    held_out_error: Float[np.ndarray, "n"]
    """Standard error of the score over contexts."""
    held_out_null: Float[np.ndarray, "n"]
    """The same score for the effect of another latent."""


@torch.no_grad()
def measure_output_effects(
    fit: ContextPool,
    held_out: ContextPool,
    *,
    directions: Float[Tensor, "n d"],
    latents: Int[np.ndarray, "n"],
    fit_pairs: ContextPairs,
    held_out_pairs: ContextPairs,
    held_out_codes: Float[Tensor, "_held_out_pairs"],
    fisher: Float[Tensor, "d d"],
    budget: float,
    max_steps: int,
    n_top: int,
    tolerance: float = 0.1,
    max_tokens: int = 8192,
) -> OutputEffects:
    """Measure the effect of each latent on the predictions, and score it in held-out contexts.

    Args:
        fit, held_out: windows of training and of held-out documents. `fit` must have captured `last_hook(subject)` too.
        directions: w_i of these latents, on the scale of the activations.
        fit_pairs, held_out_pairs: contexts in which the latents fire (`find_firing_contexts`), with the codes of the latter.
        fisher: of single positions (`measure_fisher`), for the first guess of α.
        max_steps: secant steps of α; with 0, α is the first guess. Up to 0.1 nats the KL is nearly quadratic; `kl` is the actual one.
        tolerance: relative deviation of the KL from the budget at which no further step is made.
        max_tokens: tokens per spliced pass.
    """
    device, n = fit.x.device, len(latents)
    fit_pairs, held_out_pairs = (ContextPairs(*(t.to(device) for t in p)) for p in (fit_pairs, held_out_pairs))
    units = F.normalize(directions.to(device, torch.float32), dim=-1)
    norms = directions.to(device, torch.float32).norm(dim=-1)
    lens = lens_effects(fit.subject, units, hook=fit.hook)
    n_top = min(n_top, lens.shape[-1])
    table = _Table(n, n_top)
    table.lens_promoted[:] = lens.topk(n_top).indices.cpu().numpy()
    length = max(fit.tokens.shape[1], held_out.tokens.shape[1])
    with progress("measuring what the latents do to the predictions", total=n) as advance:
        for chunk in _chunk_latents(fit_pairs.counts(n), max_pairs=max(1, max_tokens // length)):
            pairs = _take_owners(fit_pairs, chunk)
            alpha = _find_alpha(
                fit,
                pairs,
                units[chunk],
                fisher,
                budget=budget,
                max_steps=max_steps,
                tolerance=tolerance,
                max_tokens=max_tokens,
            )
            effects, kl = _steer(fit, pairs, torch.from_numpy(alpha).to(units)[:, None] * units[chunk], max_tokens)
            norm_lens = norm_lens_effects(fit, pairs, units[chunk])
            means = table.add_effects(chunk, pairs, alpha, kl, effects, lens[chunk], norm_lens)
            other = _take_owners(held_out_pairs, chunk)
            codes = held_out_codes.to(device)[_owned(held_out_pairs, chunk)]
            removed = -codes[:, None] * (norms[chunk, None] * units[chunk])[other.owners]
            table.add_scores(chunk, other, _present_effects(held_out, other, removed, max_tokens), means)
            advance(len(chunk))
    return table.results(latents)


class _Table:
    """The arrays of an `OutputEffects` while they are filled."""

    def __init__(self, n: int, n_top: int) -> None:
        self.numbers = {
            name: np.full(n, np.nan)
            for name in OutputEffects._fields[2:]
            if "promoted" not in name and name != "suppressed"
        }
        self.n_contexts, self.held_out_contexts = np.zeros(n, int), np.zeros(n, int)
        self.lens_promoted = np.full((n, n_top), -1)
        self.promoted, self.suppressed = (
            TokenEffects(np.full((n, n_top), -1), *(np.full((n, n_top), np.nan) for _ in range(3))) for _ in range(2)
        )

    def add_effects(
        self,
        chunk: Tensor,
        pairs: ContextPairs,
        alpha: np.ndarray,
        kl: Tensor,
        effects: Tensor,
        lens: Tensor,
        norm_lens: Tensor,
    ) -> Float[Tensor, "chunk d_vocab"]:
        """Add the effects of a chunk of latents; return their means, NaN for a latent with too few contexts."""
        means = torch.full_like(lens, torch.nan)
        for local, i in enumerate(chunk.tolist()):
            of = effects[pairs.owners == local]
            self.n_contexts[i] = len(of)
            if len(of) < MIN_CONTEXTS or np.isnan(alpha[local]):
                continue
            mean, error = of.mean(0), of.std(0) / len(of) ** 0.5
            means[local] = mean
            same_sign = (of.sign() == mean.sign()).double().mean(0)
            for top, largest in ((self.promoted, True), (self.suppressed, False)):
                ids = mean.topk(top.tokens.shape[1], largest=largest).indices
                for array, values in zip(top, (ids, mean[ids], error[ids], same_sign[ids]), strict=True):
                    array[i] = values.cpu().numpy()
            values = {
                "alpha": alpha[local], "kl": float(kl[local]),
                "lens_overlap": measure_top_overlap(mean, lens[local], n_top=20), "lens_pearson": float(correlate(mean, lens[local])),
                "norm_lens_overlap": measure_top_overlap(mean, norm_lens[local], n_top=20),
                "norm_lens_pearson": float(correlate(mean, norm_lens[local])),
            }  # fmt: skip
            for name, value in values.items():
                self.numbers[name][i] = value
        return means

    def add_scores(self, chunk: Tensor, pairs: ContextPairs, actual: Tensor, means: Tensor) -> None:
        """Add the held-out scores of a chunk; the null of each latent is the effect of the next one in the chunk that has an effect."""
        have = torch.nonzero(~means[:, 0].isnan())[:, 0]
        for local, i in enumerate(chunk.tolist()):
            of = actual[pairs.owners == local]
            self.held_out_contexts[i] = len(of)
            if len(of) < MIN_CONTEXTS or means[local, 0].isnan():
                continue
            scores = correlate(of, means[local].expand_as(of))
            self.numbers["held_out_score"][i] = scores.mean()
            self.numbers["held_out_error"][i] = scores.std() / len(of) ** 0.5
            if len(have) > 1:
                another = have[(int((have == local).nonzero()) + 1) % len(have)]
                self.numbers["held_out_null"][i] = correlate(of, means[another].expand_as(of)).mean()

    def results(self, latents: np.ndarray) -> OutputEffects:
        return OutputEffects(
            latents=np.asarray(latents), n_contexts=self.n_contexts, promoted=self.promoted, suppressed=self.suppressed,
            lens_promoted=self.lens_promoted, held_out_contexts=self.held_out_contexts,
            **{name: values for name, values in self.numbers.items() if name not in ("n_contexts", "held_out_contexts")},
        )  # fmt: skip


def _chunk_latents(counts: Int[Tensor, "n"], *, max_pairs: int) -> Iterator[Int[Tensor, "chunk"]]:
    """Yield latents in groups of at least two, if there are as many, whose contexts fit into one pass if possible."""
    n, first = len(counts), 0
    ends = counts.cumsum(0).cpu()
    while first < n:
        before = int(ends[first - 1]) if first else 0
        last = max(int(torch.searchsorted(ends, before + max_pairs, right=True)), first + 2)
        if n - last < 2:  # the last latent needs another one as its null
            last = n
        yield torch.arange(first, min(last, n), device=counts.device)
        first = last


def _owned(pairs: ContextPairs, chunk: Tensor) -> Tensor:
    """Return which pairs belong to consecutive latents."""
    return (pairs.owners >= chunk[0]) & (pairs.owners <= chunk[-1])


def _take_owners(pairs: ContextPairs, chunk: Tensor) -> ContextPairs:
    """Return the pairs of consecutive latents, numbered from 0."""
    taken = pairs.select(_owned(pairs, chunk))
    return taken._replace(owners=taken.owners - chunk[0])


def _find_alpha(
    pool: ContextPool,
    pairs: ContextPairs,
    units: Float[Tensor, "chunk d"],
    fisher: Float[Tensor, "d d"],
    *,
    budget: float,
    max_steps: int,
    tolerance: float,
    max_tokens: int,
) -> Float[np.ndarray, "chunk"]:
    """Return the length at which each latent spends the budget in its own contexts."""
    forms = quadratic_forms(fisher, units)
    if max_steps == 0:
        with np.errstate(divide="ignore"):
            return np.where(forms > 0, np.sqrt(2 * budget / forms), np.nan)

    def measure(which: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(which).to(units.device)
        place = torch.full((len(units),), -1, device=units.device)
        place[index] = torch.arange(len(index), device=units.device)
        some = pairs.select(place[pairs.owners] >= 0)
        vectors = units[index] * torch.from_numpy(alpha).to(units)[:, None]
        some = some._replace(owners=place[some.owners])
        return measure_mean_kl(pool, some, vectors, onward=False, max_tokens=max_tokens).cpu().numpy()

    return find_strengths(measure, forms, budget=budget, max_steps=max_steps, tolerance=tolerance).alpha


def _run(
    pool: ContextPool, pairs: ContextPairs, vectors: Float[Tensor, "pairs d"], max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return clean and changed log-probabilities at each pair's position after adding a vector there."""
    changed = []
    for part in run_chunks(len(pairs.owners), length=pool.tokens.shape[1], max_tokens=max_tokens):
        _, windows, positions = pairs.select(part)
        final = pool.run_vectors(windows, positions=positions, vectors=vectors[part], onward=False)
        changed.append(final[torch.arange(len(windows), device=final.device), positions])
    clean = pool.final[pairs.windows, pairs.positions]
    unembed = pool.subject.unembed
    return log_probabilities(clean, unembed), log_probabilities(torch.cat([clean[:0], *changed]), unembed)


def _steer(
    pool: ContextPool, pairs: ContextPairs, vectors: Float[Tensor, "chunk d"], max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return the centred effects of each pair, and the mean KL of each latent."""
    log_p, log_q = _run(pool, pairs, vectors[pairs.owners], max_tokens)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    total = torch.zeros(len(vectors), dtype=kl.dtype, device=kl.device).index_add_(0, pairs.owners, kl)
    return centre_effects(log_p, log_q), total / pairs.counts(len(vectors))


def _present_effects(
    pool: ContextPool, pairs: ContextPairs, removed: Float[Tensor, "pairs d"], max_tokens: int
) -> Tensor:
    """Return the centred effects of the latents' presence: clean minus ablated log-probabilities."""
    log_p, log_ablated = _run(pool, pairs, removed, max_tokens)
    return centre_effects(log_ablated, log_p)
