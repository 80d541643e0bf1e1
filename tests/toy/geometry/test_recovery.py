"""Recovery of features, compared with hand-computed values."""

import pytest
import torch

from crux.config.errors import UserError
from crux.toy.geometry.recovery import measure_recovery


def test_cosines_equal_hand_computed_values() -> None:
    directions = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.01]])  # the third is dead
    dictionary = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    recovery = measure_recovery(directions, dictionary)
    assert recovery.living.tolist() == [True, True, False]
    assert recovery.cosine.tolist() == pytest.approx([1.0, 0.8, 0.8])
    assert recovery.mean_max_cosine == pytest.approx(0.9)
    assert recovery.recovered == 0.5
    assert recovery.latents_mean_max_cosine == pytest.approx((0.8 + 1.0) / 2)


def test_an_opposite_direction_is_not_the_feature() -> None:
    recovery = measure_recovery(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))
    assert recovery.mean_max_cosine == pytest.approx(-1.0)


def test_empty_dictionaries_and_models() -> None:
    recovery = measure_recovery(torch.eye(2), torch.zeros(0, 2))
    assert (recovery.recovered, recovery.mean_max_cosine) == (0.0, 0.0)
    with pytest.raises(UserError, match="represents no feature"):
        measure_recovery(torch.zeros(2, 2), torch.eye(2))
