"""Neurons with different input and output weights: scale, features and the motif, compared with hand-made cases."""

import torch

from crux.toy.geometry.untied import balance_weights, features_per_neuron, find_motifs
from crux.toy.options import Kind
from crux.toy.superposition import SuperpositionModel, Weights


def test_balancing_preserves_the_function_and_equalises_the_norms() -> None:
    torch.manual_seed(0)
    W, W_out, b = torch.randn(6, 4), torch.randn(4, 6), torch.randn(4)
    W[5] = 0
    reads, writes = balance_weights(W, W_out)
    torch.testing.assert_close(reads.norm(dim=1), writes.norm(dim=0))
    assert not writes[:, 5].any()
    x = torch.randn(1, 50, 4)
    plain, even = (
        SuperpositionModel(Kind.absolute_value, Weights(r[None, None], b[None, None], w[None, None]))
        for r, w in ((W, W_out), (reads, writes))
    )
    torch.testing.assert_close(even(x), plain(x))


def test_features_per_neuron_are_those_with_large_weights() -> None:
    W = torch.tensor([[1.0, -3.0, 0.5], [0.02, 0.0, 0.0], [0.0, 0.0, -0.4], [0.0, 0.0, 0.0]])
    assert features_per_neuron(W, least=0.25) == [[1, 0], [], [2], []]


def test_the_papers_motif_is_found_with_its_inhibitor() -> None:
    W = torch.tensor([[2.0, -0.5], [1.0, 0.0], [-1.0, 0.0]])
    W_out = torch.tensor([[0.5, 0.0, 1.0], [2.0, -4.0, 0.0]])
    (motif,) = find_motifs(W, W_out, least=0.5)
    assert motif == (0, 0, 1, 4.0, 1, 4.0)  # 2 · 2 of feature 0 reach feature 1; neuron 1 takes them
    weak = W_out.clone()
    weak[1, 1] = -1.9  # less than half
    assert find_motifs(W, weak, least=0.5) == []
    other = W.clone()
    other[1, 0] = -1.0  # fires for the other sign
    assert find_motifs(other, W_out, least=0.5) == []


def test_symmetric_superposition_is_no_motif() -> None:
    W = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    W_out = torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    assert find_motifs(W, W_out, least=0.5) == []
