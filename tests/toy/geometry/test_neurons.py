"""Monosemanticity and circuits of neurons, compared with hand-made cases."""

import torch

from crux.toy.geometry.neurons import (
    Circuit,
    count_neuron_pairs,
    find_circuits,
    find_connections,
    monosemanticity,
    order_by_monosemanticity,
)


def test_monosemanticity_of_single_equal_and_dead_weights() -> None:
    W = torch.tensor([[0.0, -2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    torch.testing.assert_close(monosemanticity(W), torch.tensor([1.0, 1 / 2, 1 / 3, 0.0, 16 / 25]))


def test_circuits_are_connected_components() -> None:
    W = torch.tensor(
        [
            [1.0, 0.0, 0.7, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.7, 0.1, 0.0, 0.0],  # 0.1 is too small for a connection
            [0.0, -2.0, 0.0, 0.9, 0.0, 0.0],  # negative weights are no connections
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    circuits = find_circuits(find_connections(W, min_weight=0.25))
    assert circuits == (Circuit((0, 1, 2), (0, 1)), Circuit((3,), (2,)))
    assert [str(circuit) for circuit in circuits] == ["3 in 2", "1 in 1"]
    assert find_circuits(find_connections(W, min_weight=0.05)) == (Circuit((0, 1, 2, 3), (0, 1, 2)),)


def test_features_with_distinct_neuron_pairs_form_one_circuit() -> None:
    pairs = torch.combinations(torch.arange(5))
    W = torch.zeros(5, 10)
    W[pairs, torch.arange(10)[:, None]] = 1
    assert find_circuits(find_connections(W, min_weight=0.25)) == (Circuit(tuple(range(10)), tuple(range(5))),)


def test_neuron_pairs_are_counted_once_and_single_connections_not() -> None:
    W = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]])
    assert count_neuron_pairs(W > 0) == 2  # (0, 1), twice, and (1, 2); feature 3 has three neurons, feature 4 has one


def test_neurons_are_ordered_by_monosemanticity() -> None:
    W = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    assert order_by_monosemanticity(W) == [3, 2, 1, 0]
