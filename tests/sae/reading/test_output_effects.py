"""Output-side explanations: contexts, effects of a network that can be computed by hand, held-out scores with their null, copies."""

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

import crux
from crux.sae.reading.context_pairs import ContextPairs, find_firing_contexts
from crux.sae.reading.copied_tokens import find_copied_tokens
from crux.sae.reading.interventions import ContextPool, run_pool
from crux.sae.reading.lens import last_hook, norm_lens_effects
from crux.sae.reading.output_effects import OutputEffects, measure_output_effects
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.steering_strength import measure_fisher
from crux.subjects.subject import Subject
from tests.support.toy_subject import ToySubject

HOOK = "blocks.0.hook_resid_pre"


def sparse(codes: np.ndarray) -> SparseCodes:
    m = scipy.sparse.csr_matrix(codes.astype(np.float32))
    return SparseCodes(m.indptr.astype(np.int64), m.indices.astype(np.int32), m.data, codes.shape[1])


def test_firing_contexts_are_spread_and_have_their_codes() -> None:
    rng = np.random.default_rng(0)
    dense = rng.uniform(0.5, 1.5, (60, 5)) * (rng.random((60, 5)) < 0.5)  # 6 windows of 10 tokens
    dense[:, 3] = 0
    dense[[0, 10, 28, 29], 3] = 2  # at position 0 or beyond `length`
    pairs, codes = find_firing_contexts(sparse(dense), context=10, length=7, latents=np.array([4, 3, 0]), n_contexts=6)
    assert pairs.counts(3).tolist() == [6, 0, 6]
    latents = np.array([4, 3, 0])[pairs.owners]
    np.testing.assert_allclose(codes, dense[pairs.windows * 10 + pairs.positions, latents], rtol=1e-6)
    assert codes.min() > 0
    assert pairs.positions.min() >= 1
    assert pairs.positions.max() < 7
    candidates = [t for t in range(60) if 1 <= t % 10 < 7 and dense[t, 4]]
    expected = [candidates[i * len(candidates) // 6] for i in range(6)]
    assert (pairs.windows * 10 + pairs.positions)[:6].tolist() == expected
    every, _ = find_firing_contexts(sparse(dense), context=10, length=7, latents=np.array([4]), n_contexts=100)
    assert (every.windows * 10 + every.positions).tolist() == candidates


def measure(
    subject: Subject, pools: tuple[ContextPool, ContextPool], directions: Tensor, **options: Any
) -> OutputEffects:
    """Return the effects of directions whose latents fire at position 2 of the first windows, with code 0.3."""
    n = len(directions)
    sizes = options.pop("sizes", [6] * n)

    def pairs(extra: int) -> ContextPairs:
        owners = torch.arange(n).repeat_interleave(torch.tensor(sizes) + extra)
        windows = torch.cat([torch.arange(size + extra) for size in sizes])
        return ContextPairs(owners, windows, torch.full_like(windows, 2))

    F = measure_fisher(
        pools[0], positions=torch.full((len(pools[0].tokens),), 2), onward=False, n_draws=8, batch=8, seed=0
    )
    held_out = pairs(1)
    return measure_output_effects(
        *pools, directions=directions, latents=np.arange(n) + 10, fit_pairs=pairs(0), held_out_pairs=held_out,
        held_out_codes=torch.full((len(held_out.owners),), 0.3), fisher=F, budget=0.1, n_top=4, max_tokens=60,
        **{"max_steps": 3} | options,
    )  # fmt: skip


def run_pools(subject: Subject, hook: str, *, d_vocab: int) -> tuple[ContextPool, ContextPool]:
    def run(seed: int) -> ContextPool:
        windows = torch.randint(0, d_vocab, (9, 5), generator=torch.Generator().manual_seed(seed))
        return run_pool(subject, windows, hook=hook, batch=4, capture=[last_hook(subject)])

    return run(0), run(1)


def make_linear() -> tuple[ToySubject, Tensor]:
    """Return a linear subject without mixing of positions, and the map from activations to logits."""
    generator = torch.Generator().manual_seed(0)
    embed, matrix, W_U = (torch.randn(size, generator=generator) for size in ((9, 5), (5, 5), (30, 5)))
    return ToySubject(embed=embed, blocks=[lambda h: h @ matrix], W_U=0.3 * W_U), 0.3 * matrix @ W_U.T


def test_effects_of_a_linear_network() -> None:
    toy, to_logits = make_linear()
    directions = 2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    found = measure(toy, run_pools(toy, HOOK, d_vocab=9), directions)
    assert found.latents.tolist() == [10, 11, 12]
    assert found.n_contexts.tolist() == [6, 6, 6]
    assert found.held_out_contexts.tolist() == [7, 7, 7]
    np.testing.assert_allclose(found.kl, 0.1, rtol=0.11)
    units = directions / directions.norm(dim=1, keepdim=True)
    effect = torch.from_numpy(found.alpha)[:, None] * (units @ to_logits).double()
    effect -= effect.mean(1, keepdim=True)
    for tokens, expected in ((found.promoted, effect.topk(4)), (found.suppressed, (-effect).topk(4))):
        np.testing.assert_array_equal(tokens.tokens, expected.indices)
        np.testing.assert_allclose(np.abs(tokens.mean), expected.values, rtol=1e-4)
        np.testing.assert_allclose(tokens.standard_error, 0, atol=1e-5)
        np.testing.assert_allclose(tokens.same_sign, 1)
    np.testing.assert_allclose(found.held_out_score, 1, atol=1e-5)  # ablation has the opposite effect, in every context
    centred = effect.numpy()
    null = [np.corrcoef(centred[i], centred[(i + 1) % 3])[0, 1] for i in range(3)]  # the effect of the next latent
    np.testing.assert_allclose(found.held_out_null, null, atol=1e-5)
    lens = units @ toy.unembed.W_U.T
    np.testing.assert_array_equal(found.lens_promoted, lens.topk(4).indices)
    plain = [np.corrcoef(lens[i], effect[i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(found.lens_pearson, plain, atol=1e-5)
    np.testing.assert_allclose(found.norm_lens_pearson, plain, atol=1e-5)  # there is no final norm


def test_standard_errors_and_signs_of_effects_that_differ_between_contexts() -> None:
    toy, _ = make_linear()
    W_U = toy.unembed.W_U
    toy.blocks = [lambda h: torch.tanh(2 * h)]
    pools = run_pools(toy, HOOK, d_vocab=9)
    directions = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    found = measure(toy, pools, directions)
    v = found.alpha[0] * directions[0] / directions[0].norm()
    x = pools[0].x[:6, 2]
    p, q = ((torch.tanh(2 * h) @ W_U.T).double().log_softmax(-1) for h in (x, x + v))
    delta = q - p
    delta -= delta.mean(1, keepdim=True)
    top = delta.mean(0).topk(4).indices
    np.testing.assert_array_equal(found.promoted.tokens[0], top)
    np.testing.assert_allclose(found.promoted.mean[0], delta.mean(0)[top], rtol=1e-4)
    np.testing.assert_allclose(found.promoted.standard_error[0], delta.std(0)[top] / 6**0.5, rtol=1e-3)
    np.testing.assert_allclose(found.promoted.same_sign[0], (delta[:, top] > 0).double().mean(0))
    assert found.promoted.standard_error[0].min() > 1e-3
    assert found.kl[0] == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-4)
    # the held-out score: ablation of 0.3 w at the token, in other windows
    x = pools[1].x[:7, 2]
    p, q = ((torch.tanh(2 * h) @ W_U.T).double().log_softmax(-1) for h in (x, x - 0.3 * directions[0]))
    scores = [np.corrcoef(delta.mean(0), row)[0, 1] for row in p - q]
    assert found.held_out_score[0] == pytest.approx(np.mean(scores), abs=1e-4)
    assert found.held_out_error[0] == pytest.approx(np.std(scores, ddof=1) / 7**0.5, abs=1e-4)
    assert found.held_out_score[0] > found.held_out_null[0]


def test_latents_with_too_few_contexts_have_no_numbers() -> None:
    toy, _ = make_linear()
    directions = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    found = measure(toy, run_pools(toy, HOOK, d_vocab=9), directions, sizes=[5, 0, 1, 4], max_steps=0)
    assert found.n_contexts.tolist() == [5, 0, 1, 4]
    for numbers in (found.kl, found.held_out_score, found.lens_pearson, found.promoted.mean[:, 0]):
        assert np.isnan(numbers).tolist() == [False, True, True, False]
    assert (found.promoted.tokens[:, 0] == -1).tolist() == [False, True, True, False]
    np.testing.assert_allclose(found.kl[[0, 3]], 0.1, rtol=0.5)  # the first guess


def test_the_lens_with_the_exact_final_norm() -> None:
    """The mean over contexts of the central difference of the final norm."""
    subject, hook = crux.load_subject("tiny"), "blocks.6.hook_resid_pre"
    pool = run_pools(subject, hook, d_vocab=subject.d_vocab)[0]
    directions = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    owners, windows, positions = torch.tensor([0, 0, 1]), torch.tensor([3, 5, 5]), torch.tensor([1, 4, 2])
    found = norm_lens_effects(pool, ContextPairs(owners, windows, positions), directions)
    x = pool.clean.activations[last_hook(subject)][windows, positions].double()
    w = directions.double()[owners]
    norm = subject.parts.final_norm.double()
    difference = (norm(x + 1e-4 * w) - norm(x - 1e-4 * w)) / 2e-4 @ subject.unembed.W_U.double().T
    norm.float()
    difference -= difference.mean(1, keepdim=True)
    torch.testing.assert_close(found, torch.stack([difference[:2].mean(0), difference[2]]), rtol=1e-3, atol=1e-4)


def test_copied_tokens() -> None:
    found = find_copied_tokens(np.array([9, 3, 5, 3]), np.array([5, 9, 100]), d_vocab=1000)
    assert found.shared.tolist() == [5, 9]
    # 3 promoted tokens, 3 rule tokens: at least two in common among 1000
    total = 1000 * 999 * 998 / 6
    assert found.p_value == pytest.approx((3 * 997 + 1) / total)
    assert found.is_copy_like()
    none = find_copied_tokens(np.array([1, 2]), np.array([3]), d_vocab=10)
    assert none.shared.tolist() == []
    assert none.p_value == pytest.approx(1)
    assert not none.is_copy_like()
    assert not find_copied_tokens(np.array([1]), np.array([1]), d_vocab=10).is_copy_like()
