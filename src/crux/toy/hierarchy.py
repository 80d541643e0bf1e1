"""Features in a hierarchy, where a child implies its parent, and the absorption that SAEs trained on them show.

A sparsity penalty rewards an SAE for leaving the parent's latent silent when the child is on, if the child's latent contains the parent's
direction: one code less for the same reconstruction (Chanin et al. 2409.14507). The true features are known here, so that absorption
is measured, not inferred.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.progress import track
from crux.sae.architectures.sae import SAE
from crux.sae.reading.absorption import Absorption, measure_absorption


class Hierarchy(NamedTuple):
    """A distribution of features with unit directions; features 2i and 2i + 1 are parent and child of pair i."""

    directions: Float[Tensor, "n_features d"]
    parent_density: float
    """Probability that a parent is on."""
    child_share: float
    """Probability that its child is on if it is on."""
    implied: bool = True
    """False: children are on as often, but independently of their parents, so that there is no hierarchy."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The (child, parent) pairs."""
        return [(parent + 1, parent) for parent in range(0, len(self.directions), 2)]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Bool[Tensor, "n n_features"], Float[Tensor, "n d"]]:
        """Return which features are on in n samples, and the activations Σ m_i · direction_i with magnitudes m_i uniform in [½, 1½)."""
        n_features = len(self.directions)
        parent = torch.rand(n, n_features // 2, generator=generator) < self.parent_density
        draw = torch.rand(n, n_features // 2, generator=generator)
        child = parent & (draw < self.child_share) if self.implied else draw < self.parent_density * self.child_share
        present = torch.stack([parent, child], -1).flatten(1)
        magnitudes = 0.5 + torch.rand(n, n_features, generator=generator)
        return present, (present * magnitudes) @ self.directions


def make_hierarchy(*, n_pairs: int, parent_density: float, child_share: float) -> Hierarchy:
    """Return a hierarchy of pairs with orthonormal directions."""
    return Hierarchy(torch.eye(2 * n_pairs), parent_density, child_share)


def train_on_hierarchy(
    hierarchy: Hierarchy, sae: SAE, *, sparsity: float, steps: int, batch: int, lr: float, seed: int
) -> SAE:
    """Train an SAE in place, on fresh samples, with MSE and its own penalty; return it.

    The loss is the mean over samples of ‖x̂ − x‖² / d + sparsity · penalty, by Adam. It is a plain loop: absorption on toy data does not
    need the life cycle of a job.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    for step in track(range(steps), "training an SAE on a hierarchy of features"):
        sae.advance(step / steps)
        _, x = hierarchy.draw(batch, generator)
        codes = sae.encode(x)
        loss = (sae.decode(codes) - x).square().mean() + sparsity * sae.penalty(codes, weight=None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sae.observe(codes)
    return sae


@torch.no_grad()
def measure_hierarchy_absorption(hierarchy: Hierarchy, sae: SAE, *, n: int, seed: int) -> list[Absorption]:
    """Measure absorption in each pair on n fresh samples."""
    present, x = hierarchy.draw(n, torch.Generator().manual_seed(seed))
    fires = sae.encode(x).c != 0
    return measure_absorption(
        np.asarray(present), np.asarray(fires), directions=hierarchy.directions.numpy(),
        dictionary=sae.dictionary().numpy(), pairs=hierarchy.pairs,
    )  # fmt: skip
