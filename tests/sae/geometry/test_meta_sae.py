"""The meta-SAE on directions that are composed of parts, and on random ones."""

import pytest
import torch

from crux.config.errors import UserError
from crux.sae.geometry.meta_sae import explain_directions, measure_meta_structure
from crux.sae.geometry.nearest import normalise_rows


def test_directions_composed_of_a_few_parts_are_explained_better_than_random_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = normalise_rows(torch.randn(20, 64, generator=generator))
    chosen = torch.rand(160, 20, generator=generator).argsort(1)[:, :2]
    rows = normalise_rows(parts[chosen[:, 0]] + parts[chosen[:, 1]])
    found = measure_meta_structure(rows, covariance=torch.eye(64).double(), seed=0, steps=250)
    assert found.explained > found.isotropic + 0.2
    assert found.isotropic == pytest.approx(found.shaped, abs=0.02)
    assert explain_directions(rows, seed=0, steps=5) == explain_directions(rows, seed=0, steps=5)
    assert explain_directions(rows, seed=0, steps=5) < found.explained
    with pytest.raises(UserError, match="needs 16 latents or more, not 15"):
        explain_directions(rows[:15], seed=0)
