"""The geometry of one dictionary and of a pair of dictionaries, with two chance levels next to every cosine."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.geometry.chance import RandomDirections, draw_directions
from crux.sae.geometry.dictionary import Dictionary
from crux.sae.geometry.matching import SHARED_COSINE, Matching, find_shared, match_latents
from crux.sae.geometry.nearest import Nearest, find_nearest, find_nearest_both_ways
from crux.sae.geometry.neighbour_mixing import NEIGHBOURS, NeighbourMixing, measure_mixing

NOVEL_PERCENTILE = 99.0
"""A latent is novel if its largest cosine is below this percentile of the covariance-shaped chance level."""


class ChanceCosines(NamedTuple):
    """The same measure with random directions in place of a dictionary, of the same size; latent by latent."""

    isotropic: Float[np.ndarray, "n"]
    shaped: Float[np.ndarray, "n"]
    """Directions with the covariance of the activations."""

    def means(self) -> tuple[float, float]:
        """Return the mean of each, isotropic first."""
        return float(np.mean(self.isotropic, dtype=np.float64)), float(np.mean(self.shaped, dtype=np.float64))


class WithinGeometry(NamedTuple):
    """How similar the latents of one SAE are to each other."""

    max_cos: Nearest
    """The largest signed cosine of each alive latent with another alive latent of the same SAE."""
    chance: ChanceCosines
    """The same within random dictionaries of as many directions."""
    encoder_decoder: float
    """Mean cosine of each latent's encoder and decoder direction; NaN for a transcoder between different widths. High at first by
    construction if the initial encoder is the transposed decoder."""


class PairGeometry(NamedTuple):
    """How similar the dictionaries of two SAEs, A and B, are."""

    to: Nearest
    """For each latent of A, the nearest of B."""
    back: Nearest
    """For each latent of B, the nearest of A."""
    matching: Matching
    """One-to-one partners by decoder cosine; its mean is PW-MCC."""
    shared: Bool[np.ndarray, "pairs"]
    """Which of these pairs are also partners by encoder cosine, with a decoder cosine of at least 0.7."""
    novel_to: Bool[np.ndarray, "n_a"]
    """Latents of A that are no nearer to B than 99 % of A's latents are to covariance-shaped directions."""
    novel_back: Bool[np.ndarray, "n_b"]
    """Latents of B, with respect to A."""
    mixing: NeighbourMixing
    chance_to: ChanceCosines
    """A's latents and random directions, as many as B has latents."""
    chance_back: ChanceCosines
    """B's latents and random directions, as many as A has latents."""
    chance_matched: ChanceCosines
    """A's latents, matched with random directions in place of B; pair by pair."""
    chance_mixing: tuple[float, float]
    """The excess of A and random directions in place of B, isotropic and shaped: nearly separate sets, where 0 is mixed."""

    @property
    def novel_below(self) -> float:
        """The cosine that 99 % of A's latents do not reach with their nearest covariance-shaped directions."""
        return float(np.percentile(self.chance_to.shaped, NOVEL_PERCENTILE))

    def numbers(self) -> dict[str, float]:
        """Return all numbers by name; those of chance end with `/isotropic` and `/shaped`.

        `shared_share` of chance counts pairs with a cosine of at least 0.7 whatever their encoders: it is an upper bound.
        """
        numbers = {"n_a": float(len(self.to.cosines)), "n_b": float(len(self.back.cosines))}
        numbers |= _with_chance("to_max_cos", self.to.mean, self.chance_to.means())
        numbers |= _with_chance("from_max_cos", self.back.mean, self.chance_back.means())
        numbers |= _with_chance("matched_cos", self.matching.mean, self.chance_matched.means())
        similar = [float(np.mean(cosines >= SHARED_COSINE)) for cosines in self.chance_matched]
        numbers |= _with_chance("shared_share", float(self.shared.mean()), (similar[0], similar[1]))
        for name, novel, chance in (
            ("novel_share_a", self.novel_to, self.chance_to),
            ("novel_share_b", self.novel_back, self.chance_back),
        ):
            limit = np.percentile(chance.shaped, NOVEL_PERCENTILE)
            levels = float(np.mean(chance.isotropic < limit)), float(np.mean(chance.shaped < limit))
            numbers |= _with_chance(name, float(novel.mean()), levels)
        numbers |= _with_chance("mixing_excess", self.mixing.excess, self.chance_mixing)
        return numbers | {"candidate_limited_share": self.matching.limited_share}


def _with_chance(name: str, value: float, chance: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}/isotropic": chance[0], f"{name}/shaped": chance[1]}


@torch.no_grad()
def describe_dictionary(
    dictionary: Dictionary, *, covariance: Float[Tensor, "d_out d_out"], seed: int
) -> WithinGeometry:
    """Return the similarities within a dictionary and within random ones of the same size.

    Args:
        covariance: that of the activation that the SAE writes, for the second chance level.
        seed: of the random directions.
    """
    decoder, encoder = dictionary.decoder, dictionary.encoder
    _check_width(dictionary, covariance)
    random = draw_directions(len(decoder), covariance, seed=seed)
    chance = ChanceCosines(*(find_nearest(directions).cosines for directions in random))
    same_width = decoder.shape[1] == encoder.shape[1]
    cosine = float((decoder.double() * encoder.double()).sum(1).mean()) if same_width else float("nan")
    return WithinGeometry(find_nearest(decoder), chance, cosine)


@torch.no_grad()
def compare_dictionaries(
    a: Dictionary, b: Dictionary, *, covariance: Float[Tensor, "d_out d_out"], seed: int
) -> PairGeometry:
    """Return how similar two dictionaries are, in both directions and matched one to one, and the chance levels.

    SAEs that were trained from the same initial dictionary (same seed, size and architecture) share structure before training.

    Args:
        covariance: that of the activation that both SAEs write.
        seed: of the random directions.

    Raises:
        UserError: if the SAEs have different widths.
    """
    _check_width(a, covariance)
    _check_width(b, covariance)
    if a.encoder.shape[1] != b.encoder.shape[1]:
        raise UserError(
            f"the SAEs read activations of {a.encoder.shape[1]} and {b.encoder.shape[1]} dimensions, so they are not compared"
        )
    to, back = find_nearest_both_ways(a.decoder, b.decoder)
    matching = match_latents(a.decoder, b.decoder)
    shared = find_shared(matching, match_latents(a.encoder, b.encoder))
    for_b = draw_directions(len(b.decoder), covariance, seed=seed)
    for_a = draw_directions(len(a.decoder), covariance, seed=seed + 1)
    chance_to = ChanceCosines(*(find_nearest(a.decoder, directions).cosines for directions in for_b))
    chance_back = ChanceCosines(*(find_nearest(b.decoder, directions).cosines for directions in for_a))
    matched = [match_latents(a.decoder, directions).cosines for directions in for_b]
    return PairGeometry(
        to, back, matching, shared,
        novel_to=to.cosines < np.percentile(chance_to.shaped, NOVEL_PERCENTILE),
        novel_back=back.cosines < np.percentile(chance_back.shaped, NOVEL_PERCENTILE),
        mixing=_measure_mixing(a.decoder, b.decoder),
        chance_to=chance_to, chance_back=chance_back, chance_matched=ChanceCosines(*matched),
        chance_mixing=_mix_with_random(a.decoder, for_b),
    )  # fmt: skip


def _mix_with_random(decoder: Tensor, random: RandomDirections) -> tuple[float, float]:
    return _measure_mixing(decoder, random.isotropic).excess, _measure_mixing(decoder, random.shaped).excess


def _measure_mixing(a: Tensor, b: Tensor) -> NeighbourMixing:
    """Return the neighbour mixing; NaN if there are too few latents for it."""
    if min(len(a), len(b)) < 2 or len(a) + len(b) <= NEIGHBOURS:
        return NeighbourMixing(*(float("nan"),) * 4)
    return measure_mixing(a, b)


def _check_width(dictionary: Dictionary, covariance: Tensor) -> None:
    if dictionary.decoder.shape[1] != len(covariance):
        raise UserError(
            f"the SAE writes {dictionary.decoder.shape[1]} dimensions, but the covariance has {len(covariance)}: they belong to "
            "different hook points"
        )
