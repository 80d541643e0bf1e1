"""The features of an SAE that follow from a text alone, read in memory."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from crux.config.errors import UserError
from crux.sae.architectures.site import Site
from crux.sae.evaluation.latents import logit_effects
from crux.sae.reading.quick_read import read_batches
from crux.sae.reading.text_page import describe_text_features, find_neighbours
from crux.subjects.token_texts import TokenText
from tests.support.small_saes import make_random_sae
from tests.support.toy_subject import make_random_toy

HOOK = "blocks.1.hook_resid_pre"


def read_tokens(ids: Sequence[int]) -> list[TokenText]:
    return [TokenText(f"t{token}", joined=False) for token in ids]


def make_batches() -> list[torch.Tensor]:
    return list(torch.randint(11, (10, 8), generator=torch.Generator().manual_seed(0)).split(4))


def test_codes_in_memory_are_those_of_the_sae() -> None:
    toy = make_random_toy(seed=0)
    sae = make_random_sae(d_model=toy.d_model, n_latents=20, seed=0)
    text = read_batches(toy, Site(HOOK, HOOK, sae), make_batches(), end_of_text=3)
    tokens = torch.cat(make_batches())
    x = toy.clean(tokens, capture=[HOOK]).activations[HOOK].flatten(0, 1)
    np.testing.assert_array_equal(text.windows, tokens.numpy())
    np.testing.assert_allclose(text.codes.matrix().toarray(), sae.encode(x).c.detach().numpy(), rtol=1e-6)
    assert text.begins[8:16].tolist() == [True, *(tokens[1, :-1] == 3).tolist()]
    assert (
        len(read_batches(toy, Site(HOOK, HOOK, sae), make_batches(), max_codes=1).windows) == 4
    )  # the first batch alone


def test_an_sae_of_another_width_is_refused() -> None:
    toy = make_random_toy(seed=0)
    sae = make_random_sae(d_model=toy.d_model + 1, n_latents=20, seed=0)
    with pytest.raises(UserError):
        read_batches(toy, Site(HOOK, HOOK, sae), make_batches())


def test_features_of_some_latents() -> None:
    toy = make_random_toy(seed=0)
    sae = make_random_sae(d_model=toy.d_model, n_latents=20, seed=0)
    text = read_batches(toy, Site(HOOK, HOOK, sae), make_batches())
    latents = np.array([7, 3])
    found = describe_text_features(
        text,
        name="x",
        latents=latents,
        directions=sae.dictionary()[latents],
        unembed=toy.unembed,
        read_tokens=read_tokens,
    )
    dense = text.codes.matrix().toarray()[:, latents]
    columns = {column.key: column.values for column in found.columns}
    assert columns["density"] == pytest.approx((dense > 0).mean(0))
    assert columns["firings"].tolist() == (dense > 0).sum(0).tolist()
    assert columns["max"] == pytest.approx(dense.max(0))
    assert found.contexts is not None
    assert found.contexts.maxima == pytest.approx(dense.max(0))
    assert found.histograms is not None
    assert found.histograms.sum(1).tolist() == (dense > 0).sum(0).tolist()
    lens = logit_effects(sae.dictionary()[latents], toy.unembed, n_top=8)
    assert found.lens is not None
    np.testing.assert_array_equal(found.lens.promoted, lens.promoted.numpy())
    np.testing.assert_array_equal(found.lens.suppressed_effects, lens.suppressed_effects.detach().numpy())


def test_neighbours_are_the_most_similar_other_directions() -> None:
    """The latents 7, 4, 5 and 9 are at angles of 0°, 60°, 180° and −10°."""
    angles = torch.tensor([0.0, 60, 180, -10]).deg2rad()
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    directions[0] *= 2
    found = find_neighbours(directions, np.array([7, 4, 5, 9]), n=2)
    assert found.latents.tolist() == [[9, 4], [7, 9], [4, 9], [7, 4]]
    expected = np.cos(np.deg2rad([[10, 60], [60, 70], [120, 170], [10, 70]]))
    np.testing.assert_allclose(found.cosines, expected, atol=1e-6)
    assert find_neighbours(directions[:1], np.array([3]), n=2).latents.shape == (1, 0)
