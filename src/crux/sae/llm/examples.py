"""The passages by which an explanation is made and judged, for both protocols."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from crux.sae.llm.windows import (
    ShownText,
    Span,
    choose_activating,
    choose_silent,
    contains_token,
    grid_peaks,
    span_codes,
    strongest_token,
)

WIDTH = 32
"""Tokens of a passage (delphi's)."""

N_TOP, N_OTHERS = 10, 1
"""Passages for the explanation: the strongest ones, and from each fifth of the others."""

PER_FIFTH, N_SILENT, N_HARD = 2, 10, 5
"""Passages for the score: activating ones from each fifth, silent ones, and silent ones with the latent's strongest token."""

BUFFER = 10
"""SAEBench: tokens on each side of the token at the centre of a passage."""

SAEBENCH_EXPLAINED = (10, 5)
"""SAEBench: passages for the explanation with the largest codes, and others drawn in proportion to the squared code."""

SAEBENCH_SCORED = (2, 2, 10)
"""SAEBench: passages for the score with the largest codes, others drawn in proportion to the squared code, and silent ones."""

SAEBENCH_THRESHOLD = 0.01
"""SAEBench: a token is active if its code is above this share of the largest one."""


class Example(NamedTuple):
    """A passage that is judged."""

    text: str
    label: bool
    """True if the latent is active in it (detection, SAEBench), or if the right tokens are marked (fuzzing)."""
    hard: bool
    """True for a silent passage with the latent's strongest token: not part of the score, but reported."""


class LatentExamples(NamedTuple):
    """All passages of a latent."""

    explained: list[str]
    """Passages of training documents with marked tokens."""
    detection: list[Example]
    fuzzing: list[Example]
    """Empty in SAEBench's protocol."""
    prevalence: float
    """Share of all held-out passages in which the latent fires."""


def delphi_examples(
    fit: ShownText,
    held_out: ShownText,
    *,
    fit_codes: Float[np.ndarray, "_rows _context"],
    held_out_codes: Float[np.ndarray, "_rows2 _context"],
    rng: np.random.Generator,
) -> LatentExamples | None:
    """Return the passages for detection and fuzzing; None if the latent fires in too few passages on either side.

    Explained on training documents: 10 strongest passages and 1 of each fifth of the others. Judged on held-out documents: 10 that
    activate (2 of each fifth), 10 in which the latent is silent at every token, and 5 silent ones that contain its strongest token. For
    fuzzing, the tokens on which the latent fires are marked in the activating passages; in the silent ones, as many random tokens as
    are marked on average, rounded up.
    """
    fit_peaks, peaks = grid_peaks(fit_codes, WIDTH), grid_peaks(held_out_codes, WIDTH)
    fit_grid, grid = fit.grid(WIDTH), held_out.grid(WIDTH)
    explained = choose_activating(fit_peaks, fit_grid, n_top=N_TOP, per_quantile=N_OTHERS, width=WIDTH, rng=rng)
    activating = choose_activating(peaks, grid, n_top=0, per_quantile=PER_FIFTH, width=WIDTH, rng=rng)
    silent = choose_silent(peaks, grid, n=N_SILENT, width=WIDTH, rng=rng)
    if len(explained) < N_TOP or len(activating) < 5 * PER_FIFTH or len(silent) < N_SILENT:
        return None
    token = strongest_token(fit.read.windows, fit_codes)
    with_token = grid & contains_token(held_out.read.windows, token, width=WIDTH)
    hard = [
        span
        for span in choose_silent(peaks, with_token, n=N_HARD + N_SILENT, width=WIDTH, rng=rng)
        if span not in silent
    ][:N_HARD]
    marks = [span_codes(held_out_codes, span) > 0 for span in activating]
    n_marked = math.ceil(np.mean([mark.sum() for mark in marks]))
    detection = [
        *(Example(held_out.show(span), True, False) for span in activating),
        *(Example(held_out.show(span), False, False) for span in silent),
        *(Example(held_out.show(span), False, True) for span in hard),
    ]
    fuzzing = [
        *(Example(held_out.show(span, mark), True, False) for span, mark in zip(activating, marks, strict=True)),
        *(Example(held_out.show(span, _random_marks(n_marked, rng)), False, False) for span in silent),
    ]
    shown = [fit.show(span, span_codes(fit_codes, span) > 0) for span in explained]
    prevalence = float((peaks > 0)[grid].mean())
    return LatentExamples(shown, _shuffle(detection, rng), _shuffle(fuzzing, rng), prevalence)


def saebench_examples(
    fit: ShownText,
    held_out: ShownText,
    *,
    fit_codes: Float[np.ndarray, "_rows _context"],
    held_out_codes: Float[np.ndarray, "_rows2 _context"],
    rng: np.random.Generator,
) -> LatentExamples | None:
    """Return the 15 and 14 passages of SAEBench's autointerp; None if there are too few.

    Passages have 21 tokens, and none of those drawn by their code overlap. Two differences from SAEBench: the explanation is made on
    training documents and judged on held-out ones, while SAEBench uses the same text for both; and the 10 random passages are checked
    to be silent, while SAEBench labels them silent unchecked. So exactly 4 of 14 activate, and the answer that none does scores 10/14.
    """
    explained = _draw_by_code(fit_codes, fit, *SAEBENCH_EXPLAINED, rng=rng)
    n_top, n_weighted, n_silent = SAEBENCH_SCORED
    active = _draw_by_code(held_out_codes, held_out, n_top, n_weighted, rng=rng)
    if explained is None or active is None:
        return None
    width = 2 * BUFFER + 1
    threshold = SAEBENCH_THRESHOLD * float(held_out_codes.max())
    peaks, grid = grid_peaks(held_out_codes, width), held_out.grid(width)
    silent = choose_silent(np.where(peaks > threshold, peaks, 0), grid, n=n_silent, width=width, rng=rng)
    if len(silent) < n_silent:
        return None
    fit_threshold = SAEBENCH_THRESHOLD * float(fit_codes.max())
    examples = [Example(held_out.show(span), True, False) for span in active]
    examples += [Example(held_out.show(span), False, False) for span in silent]
    shown = [fit.show(span, span_codes(fit_codes, span) > fit_threshold) for span in explained]
    return LatentExamples(shown, _shuffle(examples, rng), [], float((peaks > threshold)[grid].mean()))


def _draw_by_code(
    codes: Float[np.ndarray, "rows context"], text: ShownText, n_top: int, n_weighted: int, *, rng: np.random.Generator
) -> list[Span] | None:
    """Return non-overlapping passages around the largest codes, strongest first, and around others drawn with p ∝ code²."""
    begins = text.read.begins.reshape(codes.shape)
    active = codes > SAEBENCH_THRESHOLD * codes.max()
    candidates, strength = np.argwhere(active), codes[active].astype(np.float64)
    order = np.argsort(-strength, kind="stable")
    taken: list[Span] = []

    def take(indices: np.ndarray, n: int) -> None:
        for row, position in candidates[indices]:
            if n == 0:
                return
            first = int(position) - BUFFER
            span = Span(int(row), first, 2 * BUFFER + 1)
            inside = first >= 1 and first + span.width <= codes.shape[1]
            if not inside or begins[row, first + 1 : first + span.width].any():
                continue
            if any(other.row == span.row and abs(other.first - first) < span.width for other in taken):
                continue
            taken.append(span)
            n -= 1

    take(order, n_top)
    # a weighted order without replacement: exponential variables divided by the weights (Efraimidis and Spirakis 2006)
    take(np.argsort(rng.exponential(size=len(strength)) / strength**2, kind="stable"), n_weighted)
    return taken if len(taken) == n_top + n_weighted else None


def _random_marks(n: int, rng: np.random.Generator) -> Bool[np.ndarray, "width"]:
    marks = np.zeros(WIDTH, bool)
    marks[rng.choice(WIDTH, min(n, WIDTH), replace=False)] = True
    return marks


def _shuffle(examples: list[Example], rng: np.random.Generator) -> list[Example]:
    return [examples[i] for i in rng.permutation(len(examples))]
