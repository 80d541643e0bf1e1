"""Neurons with different input and output weights: scale, features and the motif, compared with hand-made cases."""

import torch

from crux.toy.geometry.untied import Motif, balance_weights, features_per_neuron, find_motifs
from crux.toy.options import Kind
from crux.toy.superposition import SuperpositionModel, Weights


def test_balancing_preserves_the_function_and_equalises_the_norms() -> None:
    torch.manual_seed(0)
    W, W_out, b = torch.randn(6, 4), torch.randn(4, 6), torch.randn(4)
    W[5] = 0  # neuron 5 reads nothing, so that its output weights have no effect
    W_balanced, W_out_balanced = balance_weights(W, W_out)
    torch.testing.assert_close(W_balanced.norm(dim=1), W_out_balanced.norm(dim=0))
    assert not W_out_balanced[:, 5].any()
    x = torch.randn(1, 50, 4)
    original, balanced = (
        SuperpositionModel(Kind.absolute_value, Weights(W_in[None, None], b[None, None], V[None, None]))
        for W_in, V in ((W, W_out), (W_balanced, W_out_balanced))
    )
    torch.testing.assert_close(balanced(x), original(x))


def test_features_per_neuron_are_those_with_large_weights() -> None:
    W = torch.tensor(
        [
            [1.0, -3.0, 0.5],  # 0.5 is below a quarter of 3
            [0.02, 0.0, 0.0],  # dead compared with the first neuron
            [0.0, 0.0, -0.4],
            [0.0, 0.0, 0.0],
        ]
    )
    assert features_per_neuron(W, min_weight=0.25) == [[1, 0], [], [2], []]


def test_the_papers_motif_is_found_with_its_inhibitor() -> None:
    W = torch.tensor([[2.0, -0.5], [1.0, 0.0], [-1.0, 0.0]])
    W_out = torch.tensor([[0.5, 0.0, 1.0], [2.0, -4.0, 0.0]])
    (motif,) = find_motifs(W, W_out, min_gain=0.5)
    # Neuron 0 adds 2 · 2 = 4 units of feature 0 (loud) to feature 1 (quiet); neuron 1 subtracts 1 · 4.
    assert motif == Motif(neuron=0, loud=0, quiet=1, interference=4.0, inhibitor=1, inhibition=4.0)
    weak_inhibitor = W_out.clone()
    weak_inhibitor[1, 1] = -1.9  # subtracts less than half of the 4 units
    assert find_motifs(W, weak_inhibitor, min_gain=0.5) == []
    wrong_sign = W.clone()
    wrong_sign[1, 0] = -1.0  # neuron 1 fires for the sign of feature 0 for which neuron 0 does not
    assert find_motifs(wrong_sign, W_out, min_gain=0.5) == []


def test_symmetric_superposition_is_no_motif() -> None:
    W = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    W_out = torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    assert find_motifs(W, W_out, min_gain=0.5) == []
