"""What an SAE and the network do with single directions of an activation: the PCA-0 analysis of Braun et al., for any direction.

Braun et al. 2405.12241 (appendix) find that an e2e SAE does not reconstruct the first principal component, which is a direction of position
0, at other positions. For a transcoder, x is the clean activation at the hook point that it writes and x̂ is what it writes there.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.architectures.site import Site
from crux.sae.evaluation.intervention_effects import measure_effects
from crux.sae.evaluation.reconstruction_passes import Reconstructed, iterate_reconstructions, join_single_windows
from crux.sae.evaluation.token_moments import TokenMoments
from crux.sae.evaluation.token_permutations import cycle
from crux.sae.geometry.direction_sums import DirectionRow, DirectionSums
from crux.sae.geometry.fisher_directions import Fisher, top_eigenvectors
from crux.sae.splicing import check_site
from crux.subjects.subject import Subject


class NamedDirections(NamedTuple):
    """Unit directions of an activation, and the moments of the text on which they were found."""

    names: tuple[str, ...]
    vectors: Float[Tensor, "n d"]
    """Unit rows; float64, on the CPU."""
    covariance: Float[Tensor, "d d"]
    """Of the activation at positions ≥ 1, without end-of-text tokens; float64, on the CPU."""
    covariance_with_pos0: Float[Tensor, "d d"]
    """Of the activation at all tokens."""
    pos0_mean: Float[Tensor, "d"]
    """The mean activation at position 0, as a unit vector; zero if that mean is zero."""


@torch.no_grad()
def find_directions(
    subject: Subject,
    *,
    hook: str,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    n_components: int,
    n_random: int,
    end_of_text: int | None,
    seed: int,
) -> NamedDirections:
    """Return principal components, the mean of position 0, and random directions for comparison; only the subject's prefix runs.

    The names are `pca_<k>` for components of the centred activations at positions ≥ 1 without end-of-text tokens, whose activations can be
    as massive as those of position 0; `pca_with_pos0_<k>` for those of all tokens; `pos0_mean`, and `random_<k>` (isotropic). The sign
    of a component is such that its product with the mean of position 0 is not negative.

    Raises:
        UserError: if the text has less than two windows, or `n_components` exceeds the width of the activation.
    """
    first, rest = TokenMoments(), TokenMoments()
    everywhere = TokenMoments()
    for tokens in track(join_single_windows(batches), f"principal components at {hook}"):
        tokens = tokens.to(subject.device)
        x = subject.clean(tokens, capture=[hook], final=False).activations[hook].float()
        first.add(x[:, 0])
        rest.add(x[_ordinary_tokens(tokens, end_of_text)])
        everywhere.add(x.flatten(0, 1))
    pos0 = first.mean.cpu()
    if n_components > len(pos0):
        raise UserError(f"n_components={n_components}: the activation at {hook} has {len(pos0)} dimensions")
    length = pos0.norm()
    pos0 = pos0 / length if length > 0 else pos0
    covariances = rest.covariance.cpu(), everywhere.covariance.cpu()
    names: list[str] = []
    vectors = []
    for prefix, covariance in zip(("pca", "pca_with_pos0"), covariances, strict=True):
        components = top_eigenvectors(covariance)[:, :n_components].T
        vectors.append(components * torch.where(components @ pos0 < 0, -1.0, 1.0)[:, None])
        names += [f"{prefix}_{k}" for k in range(n_components)]
    if length > 0:
        vectors.append(pos0[None])
        names.append("pos0_mean")
    random = torch.randn(n_random, len(pos0), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors.append(random / random.norm(dim=1, keepdim=True))
    names += [f"random_{k}" for k in range(n_random)]
    return NamedDirections(tuple(names), torch.cat(vectors), *covariances, pos0)


@torch.no_grad()
def measure_directions(
    subject: Subject,
    site: Site,
    directions: NamedDirections,
    *,
    fisher: Fisher,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    end_of_text: int | None,
    seed: int,
    force: bool = False,
) -> tuple[DirectionRow, ...]:
    """Return one row per direction: how well the SAE reconstructs it, and what the network loses without its information.

    For the KL, x·u of each token is replaced by that of another token of the batch, so that its distribution stays and its information
    goes: x' = x − (x·u) u + (x_π·u) u. Position 0 and end-of-text tokens are neither changed nor used nor counted there. All directions
    have the same permutations. A batch takes one clean pass and one spliced pass per direction.

    Args:
        fisher: `measure_fisher` at the hook point that the SAE writes.
        batches: held-out windows.
        end_of_text: the token between texts; None if there is none.
        seed: of the permutations.
        force: as in `evaluate_sae`.

    Raises:
        UserError: if the SAE does not fit the subject, or the text is too short.
    """
    check_site(subject, site, force=force)
    vectors = directions.vectors.float().to(subject.device)
    generator = torch.Generator(subject.device).manual_seed(seed)
    sums = DirectionSums(directions.vectors)
    for batch in iterate_reconstructions(subject, site, batches, description="single directions on the held-out text"):
        counted = _ordinary_tokens(batch.tokens, end_of_text)
        if int(counted.sum()) < 2:
            raise UserError("a batch of the text has less than two tokens that are not end-of-text tokens")
        sums.add_batch(batch.x, batch.x_hat, counted)
        change = _resampled_change(batch.x, vectors, counted, generator=generator)
        replacements = _replacements(batch, directions.names, vectors, change)
        effects = measure_effects(subject, batch.tokens, batch.clean, hook=site.write, replacements=replacements)
        for k, effect in enumerate(effects):
            sums.add_effect(k, effect.kl * counted, change[..., k])
    return sums.rows(
        directions.names, directions.covariance, directions.covariance_with_pos0, directions.pos0_mean, fisher
    )


def _ordinary_tokens(tokens: Int[Tensor, "batch pos"], end_of_text: int | None) -> Bool[Tensor, "batch pos"]:
    """Return which tokens are neither at position 0 nor end-of-text tokens."""
    ordinary = torch.ones_like(tokens, dtype=torch.bool)
    ordinary[:, 0] = False
    return ordinary if end_of_text is None else ordinary & (tokens != end_of_text)


def _resampled_change(
    x: Float[Tensor, "batch pos d"],
    vectors: Float[Tensor, "n d"],
    counted: Bool[Tensor, "batch pos"],
    *,
    generator: torch.Generator,
) -> Float[Tensor, "batch pos n"]:
    """Return x_π·u − x·u for each counted token and direction, and zero for the other tokens."""
    along = x[counted] @ vectors.T
    partners = cycle(len(along), generator=generator, device=x.device)
    change = x.new_zeros(*x.shape[:2], len(vectors))
    change[counted] = along[partners] - along
    return change


def _replacements(
    batch: Reconstructed, names: tuple[str, ...], vectors: Float[Tensor, "n d"], change: Float[Tensor, "batch pos n"]
) -> Iterator[tuple[str, Float[Tensor, "batch pos d"]]]:
    for k, name in enumerate(names):
        yield name, batch.x + change[..., k, None] * vectors[k]
