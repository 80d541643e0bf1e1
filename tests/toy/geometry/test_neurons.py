"""Monosemanticity and circuits of neurons, against cases worked out by hand."""

import torch

from crux.toy.geometry.neurons import (
    Circuit,
    count_neuron_pairs,
    find_circuits,
    find_connections,
    monosemanticity,
    order_by_monosemanticity,
)


def test_a_neuron_of_one_feature_has_1_of_k_equal_ones_1_over_k_a_dead_one_0() -> None:
    W = torch.tensor([[0.0, -2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    torch.testing.assert_close(monosemanticity(W), torch.tensor([1.0, 1 / 2, 1 / 3, 0.0, 16 / 25]))


def test_circuits_are_what_hangs_together() -> None:
    W = torch.tensor(
        [
            [1.0, 0.0, 0.7, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.7, 0.1, 0.0, 0.0],  # its .1 is no wire
            [0.0, -2.0, 0.0, 0.9, 0.0, 0.0],  # nor is what inhibits
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    found = find_circuits(find_connections(W, least=0.25))
    assert found == (Circuit((0, 1, 2), (0, 1)), Circuit((3,), (2,)))
    assert [str(circuit) for circuit in found] == ["3 in 2", "1 in 1"]
    assert find_circuits(find_connections(W, least=0.05)) == (Circuit((0, 1, 2, 3), (0, 1, 2)),)


def test_every_feature_in_a_pair_of_its_own_is_one_circuit() -> None:
    pairs = torch.combinations(torch.arange(5))
    W = torch.zeros(5, 10)
    W[pairs, torch.arange(10)[:, None]] = 1
    assert find_circuits(find_connections(W, least=0.25)) == (Circuit(tuple(range(10)), tuple(range(5))),)


def test_pairs_are_counted_once_and_single_wires_not() -> None:
    W = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]])
    assert count_neuron_pairs(W > 0) == 2  # (0, 1) twice and (1, 2); not all three, not one alone


def test_order_of_neurons() -> None:
    W = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    assert order_by_monosemanticity(W) == [3, 2, 1, 0]
