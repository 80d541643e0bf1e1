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
from tests.degeneracy.test_ablation import build_behavioural_loss
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


def compute_without_saving(name: str, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
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
    bases = find_bases(
        chain, batches, moments_at=moments_at, options=options, last=last, seed=0, once=compute_without_saving
    )
    assert list(bases) == ["neuron", "random", "pca", "local", "next-2", "global"]
    assert len({id(per_hook[-1]) for per_hook in bases.values()}) == 1
    reported: list[int] = []
    found = ablate_bases(
        chain,
        bases,
        options=options,
        seed=0,
        found_on=batches,
        loss=AblationLoss("MSE", build_behavioural_loss(chain), "output", batches),
        once=compute_without_saving,
        report_done=reported.append,
    )
    assert reported == [1, 2, 3, 4, 5, 6]
    assert found.clean == 0
    assert list(found.edge_curves) == ["pca", "next-2"]
    for name in bases:
        assert [edges.strength.shape for edges in found.edges[name]] == [(3, 3), (3, 3)]  # `directions` is 3
        at_input, at_post0 = found.nodes[name]
        assert at_input.size == 5
        assert at_input.losses[at_input.size] < 1e-12
        assert at_post0.needed is not None
        assert at_post0.losses[at_post0.needed] <= 0.1
    per_layer = [curve.needed for curve in found.edge_curves["pca"]]
    total = None if None in per_layer else sum(n for n in per_layer if n is not None)
    assert found.total_edges_needed("pca") == total


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
