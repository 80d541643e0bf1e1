"""The directions of an activation that the network reads: the Fisher information of its predictions, from gradients of drawn labels."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.progress import track
from crux.sae.evaluation.token_moments import TokenMoments
from crux.sae.label_gradients import clean_with_label_gradients
from crux.subjects.subject import Clean, Subject


class Fisher(NamedTuple):
    """F̄ = E[g gᵀ] over tokens at positions ≥ 1 and draws of the labels.

    g_t is the gradient at x_t of Σ_s log p(y_s), y_s ~ p_s, in nats per unit of activation. Labels at different positions are drawn
    independently, so that the KL caused by a small change δ of one token's activation, summed over all positions, is ½ δᵀ F δ.
    """

    matrix: Float[Tensor, "d d"]
    """F̄; float64, on the CPU."""
    n_tokens: int
    """Number of tokens."""
    n_draws: int
    """Draws of the labels of each token."""

    @property
    def trace(self) -> float:
        """tr F̄ = E‖g‖²."""
        return float(self.matrix.trace())

    def use_per_energy(self, second_moment: Float[Tensor, "d d"]) -> float | None:
        """Return tr(F̄ M) / (tr M · tr F̄ / d): 1 for isotropic vectors, larger if the network reads more of them; None if M or F̄ is zero."""
        energy, trace = float(second_moment.trace()), self.trace
        if energy <= 0 or trace <= 0:
            return None
        return float((self.matrix * second_moment.cpu()).sum()) / (energy * trace / len(self.matrix))


def top_eigenvectors(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the eigenvectors of a symmetric matrix as columns, largest eigenvalue first; the largest entry of each is positive."""
    vectors = torch.linalg.eigh(matrix.cpu().double())[1].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def draw_gradients(
    subject: Subject,
    tokens: Int[Tensor, "batch pos"],
    *,
    hook: str,
    n_draws: int,
    generator: torch.Generator,
    capture: Iterable[str] = (),
) -> Iterator[tuple[Clean, Float[Tensor, "batch pos d"]]]:
    """Yield the clean pass and the gradient g at `hook`, in float32, for each draw of the labels."""
    for _ in range(n_draws):
        clean, gradients = clean_with_label_gradients(
            subject, tokens, hooks=[hook], target="sampled", generator=generator, capture=[hook, *capture]
        )
        yield clean, -gradients[hook].float()  # of the log-probability, not of the loss


@torch.no_grad()
def measure_fisher(
    subject: Subject, *, hook: str, batches: Iterable[Int[Tensor, "_batch _pos"]], n_draws: int, seed: int
) -> Fisher:
    """Return F̄ at a hook point from `n_draws` draws of the labels of each token; position 0 is left out."""
    generator = torch.Generator(subject.device).manual_seed(seed)
    moments = TokenMoments()
    for tokens in track(batches, f"directions that the network reads at {hook}"):
        tokens = tokens.to(subject.device)
        for _, gradient in draw_gradients(subject, tokens, hook=hook, n_draws=n_draws, generator=generator):
            moments.add(gradient[:, 1:].flatten(0, 1))
    return Fisher(moments.second_moment.cpu(), moments.n // n_draws, n_draws)
