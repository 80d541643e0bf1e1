"""SAEs trained on a hierarchy of features absorb the parents under a sparsity penalty, and not without one."""

import numpy as np
import pytest
import torch

from crux.sae.architectures.sae import SAE
from crux.toy.hierarchy import make_hierarchy, measure_hierarchy_absorption, train_on_hierarchy
from tests.support.small_saes import make_relu_sae

HIERARCHY = make_hierarchy(n_pairs=4, parent_density=0.15, child_share=0.4)


def test_children_imply_their_parents_at_the_planted_rates() -> None:
    present, x = HIERARCHY.draw(20_000, torch.Generator().manual_seed(0))
    for child, parent in HIERARCHY.pairs:
        assert not (present[:, child] & ~present[:, parent]).any()
        assert float(present[:, parent].float().mean()) == pytest.approx(0.15, abs=0.01)
        assert float(present[present[:, parent], child].float().mean()) == pytest.approx(0.4, abs=0.03)
    assert torch.equal(x != 0, present)
    assert 0.5 <= float(x[present].min()) < float(x[present].max()) <= 1.5


def test_an_sae_that_is_known_to_absorb() -> None:
    """Latents read parent − child and child; the child's latent writes both, so that every parent is absorbed."""
    n = len(HIERARCHY.directions)
    encoder, decoder = torch.eye(n), torch.eye(n)
    for child, parent in HIERARCHY.pairs:
        encoder[child, parent] = -10.0  # W_enc is d × latents: the child's direction turns the parent's latent off
        decoder[child, parent] = 1.0
    absorbing = make_relu_sae(encoder, torch.zeros(n), decoder, torch.zeros(n))
    found = measure_hierarchy_absorption(HIERARCHY, absorbing, n=4000, seed=1)
    assert [f.absorbed for f in found] == [1] * 4
    assert [f.missed_without_child for f in found] == [0] * 4
    faithful = make_relu_sae(torch.eye(n), torch.zeros(n), torch.eye(n), torch.zeros(n))
    assert [f.absorbed for f in measure_hierarchy_absorption(HIERARCHY, faithful, n=4000, seed=1)] == [0] * 4


def start_at_features() -> SAE:
    return make_relu_sae(torch.eye(8), torch.zeros(8), torch.eye(8), torch.zeros(8))


def test_a_sparsity_penalty_makes_parents_absorbed() -> None:
    """Both SAEs start at the true features, where nothing is absorbed.

    The child's latent turns towards the parent; the parent's latent is then silent where the child's magnitude is the larger one,
    which is the case on half of the tokens.
    """
    rates = {}
    for sparsity in (0.0, 0.6):
        sae = train_on_hierarchy(
            HIERARCHY, start_at_features(), sparsity=sparsity, steps=600, batch=256, lr=1e-2, seed=0
        )
        rates[sparsity] = np.mean([f.absorbed for f in measure_hierarchy_absorption(HIERARCHY, sae, n=4000, seed=1)])
    assert rates[0.0] < 0.05
    assert rates[0.6] > 0.3
