"""The best seed of each density and setting."""

import torch

from crux.toy.exact.best import best_streams


def test_best_streams_have_the_lowest_loss_of_each_density_and_setting() -> None:
    loss = torch.tensor([[3.0, 1.0], [2.0, 5.0], [7.0, 4.0], [9.0, 3.0]])  # two densities × two seeds, two settings
    assert best_streams(loss, n_seeds=2).tolist() == [[1, 0], [2, 3]]
