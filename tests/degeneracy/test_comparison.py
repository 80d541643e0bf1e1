"""Tests of the steps of a comparison of bases, and of the basis of the logits."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from crux.degeneracy.basis import pca_basis
from crux.degeneracy.basis_options import CompareOptions, LastBasis
from crux.degeneracy.comparison import (
    AblationCurve,
    AblationLoss,
    ablate_bases,
    count_edges_for_share,
    find_bases,
    logits_basis,
    measure_curve,
    take_first_samples,
)
from crux.degeneracy.grams import moments
from crux.subjects.subject import FINAL
from tests.degeneracy.test_ablation import behavioural_loss
from tests.support.small_networks import inputs, perceptron, random_subject
from tests.support.tiny_subjects import TOKENS


def test_logits_basis_is_the_principal_components_of_the_logits() -> None:
    """Coordinates preserve all inner products of the logits, after subtracting their mean over the vocabulary."""
    subject = random_subject("gpt2").to(dtype=torch.float64)
    moments_at = moments(subject, [TOKENS], hooks=[FINAL])[FINAL]
    W_U = subject.unembed.W_U
    basis = logits_basis(FINAL, moments_at, W_U=W_U, threshold=1e-12)
    hidden = subject.clean(TOKENS, capture=[FINAL]).activations[FINAL].flatten(0, 1)
    logits = hidden @ W_U.T
    logits = logits - logits.mean(1, keepdim=True)
    logits = logits - logits.mean(0)
    coordinates = basis.coordinates(hidden)
    assert torch.allclose(coordinates @ coordinates.T, logits @ logits.T, atol=1e-8)
    values = torch.linalg.eigvalsh(logits.T @ logits / len(logits)).flip(0)[: basis.size]
    assert torch.allclose(basis.strength, values, atol=1e-8)


def compute_again(name: str, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    return compute()


def test_every_basis_is_compared_and_the_last_hook_points_basis_is_shared() -> None:
    chain = perceptron([5, 8, 3], activation=nn.GELU, seed=0)
    batches = inputs((40, 5), seed=1)
    options = CompareOptions(
        threshold=1e-12, points=2, within=0.1, bases=["neuron", "random", "pca", "local", "next", "global"],
        hooks=["input", "post0", "output"], last=LastBasis.pca, ahead=2, probes=None, samples=80, judged=80, batch=40,
        directions=3, edge_samples=50, edge_ablation=["pca", "next"],
    )  # fmt: skip
    moments_at = moments(chain, batches, hooks=options.hooks)
    last = pca_basis("output", moments_at["output"], threshold=1e-12)
    bases = find_bases(chain, batches, moments_at=moments_at, options=options, last=last, seed=0, once=compute_again)
    assert list(bases) == ["neuron", "random", "pca", "local", "next-2", "global"]
    assert len({id(along[-1]) for along in bases.values()}) == 1
    done: list[int] = []
    found = ablate_bases(
        chain,
        bases,
        options=options,
        seed=0,
        found_on=batches,
        loss=AblationLoss("MSE", behavioural_loss(chain), "output", batches),
        once=compute_again,
        report_done=done.append,
    )
    assert done == [1, 2, 3, 4, 5, 6]
    assert found.clean == 0
    assert list(found.edge_curves) == ["pca", "next-2"]
    for name in bases:
        assert [each.strength.shape for each in found.edges[name]] == [(3, 3), (3, 3)]
        (here, there) = found.nodes[name]
        assert here.size == 5
        assert here.losses[here.size] < 1e-12
        assert there.needed is not None
        assert there.losses[there.needed] <= 0.1
    needed = found.total_edges_needed("pca")
    each = [curve.needed for curve in found.edge_curves["pca"]]
    assert needed == (None if None in each else sum(n for n in each if n is not None))


def test_curve_measures_each_number_once() -> None:
    calls: list[int] = []

    def loss(n: int) -> float:
        calls.append(n)
        return 10.0 - n

    found = measure_curve(loss, 10, limit=3.0, all_powers=True)
    assert found.needed == 7
    assert list(found.losses) == [0, 1, 2, 4, 6, 7, 8, 10]
    assert len(calls) == len(set(calls))
    assert list(measure_curve(loss, 10, limit=9.0, all_powers=False).losses) == [0, 1, 10]
    assert measure_curve(loss, 10, limit=-1.0, all_powers=False).needed is None
    for found in (
        measure_curve(loss, 10, limit=3.0, all_powers=True),
        measure_curve(loss, 10, limit=-1.0, all_powers=False),
    ):
        assert AblationCurve.from_tensors(found.tensors) == found


def test_count_edges_for_share_and_first_samples() -> None:
    assert count_edges_for_share(torch.tensor([[8.0, 1.0], [1.0, 0.0]]), share=0.8) == 1
    assert count_edges_for_share(torch.tensor([[8.0, 1.0], [1.0, 0.0]]), share=0.99) == 3
    batches = [torch.zeros(4, 2), torch.ones(4, 2)]
    assert [len(batch) for batch in take_first_samples(batches, 6)] == [4, 2]
    assert [len(batch) for batch in take_first_samples(batches, 4)] == [4]
    assert [len(batch) for batch in take_first_samples(batches, 99)] == [4, 4]
