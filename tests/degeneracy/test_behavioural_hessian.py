"""Test of the full Hessian of the behavioural loss against torch's second derivatives."""

import torch
from torch import nn

from crux.degeneracy.behavioural_hessian import behavioural_hessian
from tests.degeneracy.test_ranks import behavioural_hessian as by_torch
from tests.degeneracy.test_ranks import pytestmark as pytestmark
from tests.support.small_networks import inputs, perceptron


def test_hessian_equals_that_of_torch() -> None:
    for activation in (nn.Tanh, nn.ReLU):
        network = perceptron([4, 5, 3], activation=activation, seed=0)
        x = torch.cat(inputs((50, 4), seed=1))  # more than one chunk
        found = behavioural_hessian(network, x)
        names = [name for name, _ in network.named_parameters()]
        torch.testing.assert_close(found, by_torch(network, x, names), atol=1e-9, rtol=1e-9)
