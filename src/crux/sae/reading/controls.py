"""Control dictionaries: codes of directions that no SAE has learnt, on the same text and with the densities of an SAE's latents.

Scores of a latent depend on its density. So each control latent stands for one latent of the SAE, and fires on as many fit tokens as that
one. Whatever is computed from `SparseCodes` can then be computed from a control in the same way. A score that is no better for the latents
than for their controls measures the network, not the SAE.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from crux.config.progress import track
from crux.sae.reading.directions import ActivationMoments, DirectionKind, draw_directions
from crux.sae.reading.harvest import Harvest, ReadText
from crux.sae.reading.sparse_codes import SparseCodes

BLOCK = 2**26
"""Number of projections, directions × tokens, that are held at a time; 256 MB in float32."""

ROWS = 2**14
"""Number of tokens whose activations are read at a time."""


class Control(NamedTuple):
    """The codes of a control dictionary; its latent j stands for the latent `latents[j]` of the SAE."""

    name: str
    """The kind of directions, `shifted`, or the name that the caller gave an SAE."""
    latents: Int[np.ndarray, "n"]
    """The latents of the SAE for which the control latents stand, ascending."""
    fit: SparseCodes
    held_out: SparseCodes

    def harvest(self, harvest: Harvest) -> Harvest:
        """Return a harvest of the same text with the codes of the control in place of the SAE's."""
        return harvest._replace(
            fit=harvest.fit._replace(codes=self.fit), held_out=harvest.held_out._replace(codes=self.held_out)
        )


def choose_latents(harvest: Harvest, n: int, *, min_fit: int, min_held_out: int) -> Int[np.ndarray, "m"]:
    """Return at most `n` latents, ascending, that are spread evenly over the ranks of density.

    Only latents that fire on at least `min_fit` fit tokens and `min_held_out` held-out tokens are candidates; all are taken if
    there are no more than `n`.
    """
    firings = harvest.fit.codes.firings()
    able = np.flatnonzero((firings >= min_fit) & (harvest.held_out.codes.firings() >= min_held_out))
    by_density = able[np.argsort(firings[able], kind="stable")]
    m = min(n, len(able))
    return np.sort(by_density[(2 * np.arange(m) + 1) * len(able) // (2 * m)]) if m else able


def select_latents(codes: SparseCodes, latents: Int[np.ndarray, "n"]) -> SparseCodes:
    """Return the codes of some latents, given in ascending order, which are numbered from 0 in the result."""
    assert (np.diff(latents) > 0).all(), "the latents must be ascending"
    numbers = np.full(codes.n_latents, -1, np.int32)
    numbers[latents] = np.arange(len(latents))
    new = numbers[codes.latents]
    kept = new >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[codes.indptr]
    return SparseCodes(indptr, new[kept], codes.values[kept], len(latents))


def make_direction_control(
    kind: DirectionKind,
    harvest: Harvest,
    latents: Int[np.ndarray, "n"],
    *,
    moments: ActivationMoments,
    seed: int,
) -> Control:
    """Return the control dictionary of random directions, principal components, examples or coordinates.

    Args:
        harvest: with activations.
        latents: of the SAE, ascending, whose densities the control has.
        moments: of the fit activations.
        seed: of the directions, see `draw_directions`.
    """
    x = get_activations(harvest.fit)
    directions = draw_directions(kind, len(latents), moments=moments, x=x, seed=seed)
    firings = harvest.fit.codes.firings()[latents]
    fit, held_out = encode_directions(
        directions, firings=firings, mean=moments.mean, fit=x, held_out=get_activations(harvest.held_out)
    )
    return Control(kind, latents, fit, held_out)


def encode_directions(
    directions: Float[np.ndarray, "n d"],
    *,
    firings: Int[np.ndarray, "n"],
    mean: Float[np.ndarray, "d"],
    fit: Float[np.ndarray, "fit_tokens d"],
    held_out: Float[np.ndarray, "held_out_tokens d"],
) -> tuple[SparseCodes, SparseCodes]:
    """Return the codes max(0, (x − mean) · u − θ) of directions u on the fit and on the held-out tokens.

    θ is the largest fit projection but `firings`, so that a direction fires on that many fit tokens, or on fewer if projections are
    equal. The same θ is used on the held-out tokens. The projections are computed in float32, in blocks of directions and tokens.

    Args:
        fit: activations, which may be memory-mapped, as `held_out` may be.
    """
    per_block = max(1, BLOCK // max(len(fit), len(held_out)))
    sides: tuple[list[Column], list[Column]] = ([], [])
    for first in track(range(0, len(directions), per_block), "codes of control directions"):
        block = directions[first : first + per_block]
        projected = _project(fit, block, mean)
        thresholds = np.array([find_threshold(p, n) for p, n in zip(projected, firings[first:].tolist(), strict=False)])
        sides[0].extend(
            lower_column(np.arange(len(p)), p, theta) for p, theta in zip(projected, thresholds, strict=True)
        )
        projected = _project(held_out, block, mean)
        sides[1].extend(
            lower_column(np.arange(len(p)), p, theta) for p, theta in zip(projected, thresholds, strict=True)
        )
    return stack_columns(sides[0], n_tokens=len(fit)), stack_columns(sides[1], n_tokens=len(held_out))


def find_threshold(values: Float[np.ndarray, "tokens"], firings: int) -> np.floating:
    """Return the θ that `firings` values exceed, or fewer if values are equal; all exceed it if `firings` is their number or more."""
    if firings >= len(values):
        return np.nextafter(values.min(), values.dtype.type(-np.inf))
    place = len(values) - 1 - firings
    return np.partition(values, place)[place]


class Column(NamedTuple):
    """The codes of one latent."""

    tokens: Int[np.ndarray, "nnz"]
    """Tokens on which one latent fires, ascending; int32."""
    values: Float[np.ndarray, "nnz"]


def lower_column(
    tokens: Int[np.ndarray, "n"], values: Float[np.ndarray, "n"], threshold: float | np.floating
) -> Column:
    """Return max(0, value − θ), where it is not zero, of one latent's values on some tokens."""
    kept = values > threshold
    return Column(tokens[kept].astype(np.int32), (values[kept] - threshold).astype(np.float32))


def stack_columns(columns: list[Column], *, n_tokens: int) -> SparseCodes:
    """Return the codes of latents that are given one by one, token by token."""
    ends = np.concatenate([[0], np.cumsum([len(column.tokens) for column in columns], dtype=np.int64)])
    tokens = np.concatenate([column.tokens for column in columns] or [np.zeros(0, np.int32)])
    values = np.concatenate([column.values for column in columns] or [np.zeros(0, np.float32)])
    matrix = scipy.sparse.csc_matrix((values, tokens, ends), shape=(n_tokens, len(columns))).tocsr()
    return SparseCodes(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, len(columns))


def _project(
    x: Float[np.ndarray, "tokens d"], directions: Float[np.ndarray, "n d"], mean: Float[np.ndarray, "d"]
) -> Float[np.ndarray, "n tokens"]:
    projected = np.empty((len(directions), len(x)), np.float32)
    u, centre = directions.astype(np.float32), mean.astype(np.float32)
    for first in range(0, len(x), ROWS):
        projected[:, first : first + ROWS] = u @ (x[first : first + ROWS] - centre).T
    return projected


def make_shifted_control(harvest: Harvest, latents: Int[np.ndarray, "n"]) -> Control:
    """Return the null: the codes of the SAE's latents, moved by half the text and half a window, away from their tokens.

    Densities, strengths and the distances between firings stay; whatever predicts such codes on held-out text predicts by chance. The half
    window keeps codes that depend on the position from staying at theirs.
    """
    sides = []
    for text in (harvest.fit, harvest.held_out):
        n_windows, context = text.windows.shape
        codes = select_latents(text.codes, latents)
        sides.append(shift_codes(codes, by=n_windows // 2 * context + context // 2))
    return Control("shifted", latents, *sides)


def shift_codes(codes: SparseCodes, *, by: int) -> SparseCodes:
    """Return codes that are moved by a number of tokens, circularly: token t has the codes of token t − `by`."""
    cut = (codes.n_tokens - by) % codes.n_tokens
    start = codes.indptr[cut]
    counts = np.roll(np.diff(codes.indptr), -cut)
    latents = np.concatenate([codes.latents[start:], codes.latents[:start]])
    values = np.concatenate([codes.values[start:], codes.values[:start]])
    return SparseCodes(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), latents, values, codes.n_latents)


def get_activations(text: ReadText) -> Float[np.ndarray, "tokens d"]:
    """Return the activations of a harvest that has kept them."""
    assert text.x is not None, "controls need a harvest with activations"
    return text.x
