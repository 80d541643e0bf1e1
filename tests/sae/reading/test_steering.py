"""Steering at an equal KL budget: the search for the strength, the chain rule, and a linear network with known effects."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import crux
from crux.config.errors import UserError
from crux.sae.architectures.site import Site
from crux.sae.evaluation.latents import logit_effects
from crux.sae.reading.context_pairs import pair_with_all
from crux.sae.reading.interventions import run_pool
from crux.sae.reading.lens import last_hook, lens_effects, norm_lens_effects
from crux.sae.reading.prediction_effects import (
    centre_effects,
    correlate,
    measure_consistency,
    measure_mode_share,
    measure_top_overlap,
    split_kl,
)
from crux.sae.reading.steering import (
    COLUMNS,
    SteeringContexts,
    find_novel_contexts,
    run_steering_contexts,
    steer_directions,
    summarise_steering,
)
from crux.sae.reading.steering_comparison import collect_latent_directions, compare_steering
from crux.sae.reading.steering_strength import find_strengths, measure_fisher, measure_mean_kl
from crux.subjects.subject import Subject
from tests.support.small_saes import make_random_sae
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK = "blocks.1.hook_resid_pre"


def draw_windows(n: int, length: int, d_vocab: int, seed: int) -> Tensor:
    return torch.randint(0, d_vocab, (n, length), generator=torch.Generator().manual_seed(seed))


def make_linear(seed: int = 0) -> ToySubject:
    """Return a linear subject whose last block mixes positions: it adds half of the previous position."""
    generator = torch.Generator().manual_seed(seed)
    embed, matrix = torch.randn(9, 5, generator=generator), torch.randn(5, 5, generator=generator)

    def mix(h: Tensor) -> Tensor:
        previous = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return (h + 0.5 * previous) @ matrix

    W_U = 0.5 * torch.randn(30, 5, generator=generator)
    return ToySubject(embed=embed, blocks=[lambda h: h, mix], W_U=W_U)


def contexts_of(subject: Subject, hook: str, *, onward: bool, length: int = 8, n: int = 40) -> SteeringContexts:
    d_vocab = min(subject.d_vocab, 9)
    return run_steering_contexts(
        subject, hook=hook, fit=draw_windows(n, length, d_vocab, 1), test=draw_windows(n + 3, length, d_vocab, 2),
        position=4, onward=onward, n_draws=8, batch=16, seed=0,
    )  # fmt: skip


def test_the_chain_rule_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (3 * torch.randn(2, 6, 50, generator=generator, dtype=torch.float64)).log_softmax(-1)
    target = torch.tensor([4, 7, 30])
    parts = split_kl(log_p, log_q, target)
    p, q = log_p.exp(), log_q.exp()
    P, Q = p[:, target].sum(1), q[:, target].sum(1)
    plain_bracket = P * (P / Q).log() + (1 - P) * ((1 - P) / (1 - Q)).log()
    rest = [v for v in range(50) if v not in target.tolist()]
    p_rest, q_rest = p[:, rest] / (1 - P)[:, None], q[:, rest] / (1 - Q)[:, None]
    torch.testing.assert_close(parts.on_target, plain_bracket, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        parts.side_effect, (1 - P) * (p_rest * (p_rest / q_rest).log()).sum(1), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(parts.total, (p * (p / q).log()).sum(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        parts.on_target + parts.within_target + parts.side_effect, parts.total, rtol=0, atol=1e-12
    )


def test_moving_probability_to_one_token_is_all_on_target() -> None:
    log_p = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    raised = log_p.clone()
    raised[:, 5] += 1.5
    parts = split_kl(log_p, raised.log_softmax(-1), torch.tensor([5]))
    torch.testing.assert_close(parts.on_target, parts.total)
    assert parts.side_effect.abs().max() < 1e-15
    assert parts.within_target.abs().max() < 1e-15


def test_measures_of_effects_by_hand() -> None:
    effects = torch.tensor([[3.0, 0, 0], [0, 4.0, 0], [3.0, 0, 0]])
    assert measure_consistency(effects) == pytest.approx(1 / 3)  # cosines 0, 1, 0
    assert math.isnan(measure_consistency(effects[:1]))
    assert measure_mode_share(effects) == pytest.approx(2 / 3)
    assert measure_top_overlap(torch.arange(6.0), torch.tensor([9.0, 0, 0, 0, 8, 7]), n_top=3) == pytest.approx(2 / 3)
    torch.testing.assert_close(
        correlate(torch.tensor([[1.0, 2, 4]]), torch.tensor([[2.0, 1, 7]])),
        torch.tensor([np.corrcoef([1, 2, 4], [2, 1, 7])[0, 1]]),
    )
    delta = centre_effects(torch.tensor([[0.0, 1, 2]]), torch.tensor([[3.0, 1, 2]]))
    assert delta.tolist() == [[2.0, -1.0, -1.0]]
    scores = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]])
    fires = torch.tensor([[True, False, False, True], [True, False, False, False]])
    assert find_novel_contexts(scores, fires).tolist() == [[False, True, False, False], [False, False, True, True]]


def test_search_for_the_strength() -> None:
    """Of a KL that is quadratic, of ones that grow faster and more slowly, and of one that is always 0."""
    powers, asked = np.array([2.0, 3.0, 1.3, 2.0]), []

    def measure(which: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        asked.append(which.tolist())
        return np.where(which == 3, 0.0, 0.05 * alpha ** powers[which])

    found = find_strengths(measure, np.full(4, 0.1), budget=0.8)
    np.testing.assert_allclose(found.alpha[:3], 16 ** (1 / powers[:3]), rtol=0.02)
    np.testing.assert_allclose(found.kl[:3], 0.8, rtol=0.03)
    assert found.steps[0] == 0
    assert found.steps.max() <= 3
    assert asked[0] == [0, 1, 2, 3]
    assert asked[1] == [
        1,
        2,
    ]
    assert np.isnan(find_strengths(measure, np.array([0.0]), budget=0.8).alpha[0])


@pytest.mark.parametrize("midpoint", [0.3, 1.0, 3.0])
def test_search_for_the_strength_if_the_kl_sets_in_abruptly(midpoint: float) -> None:
    """A KL that is quadratic, and then rises by a factor of a hundred within a few percent of α."""
    calls = []

    def measure(_: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        calls.append(alpha[0])
        return 0.02 * alpha**2 * (1 + 100 / (1 + np.exp(-(np.log(alpha) - math.log(midpoint)) / 0.03)))

    found = find_strengths(measure, np.array([0.04]), budget=0.3, max_steps=12)
    assert found.kl[0] == pytest.approx(0.3, rel=0.03)
    assert found.alpha[0] == calls[-1]
    assert found.steps[0] == len(calls) - 1
    few = find_strengths(measure, np.array([0.04]), budget=0.3, max_steps=1)
    tried = calls[-2:]
    values = [abs(math.log(measure(np.array([0]), np.array([a]))[0] / 0.3)) for a in tried]
    assert few.alpha[0] == tried[int(np.argmin(values))]  # the closest one


@pytest.mark.parametrize("onward", [False, True])
def test_fisher_predicts_the_kl_of_small_vectors(onward: bool) -> None:
    toy = make_linear()
    pool = run_pool(toy, draw_windows(30, 6, 9, 0), hook=HOOK, batch=7)
    positions = torch.full((30,), 3)
    F = measure_fisher(pool, positions=positions, onward=onward, n_draws=100, batch=30, seed=0)
    vectors = 0.02 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    pairs = pair_with_all(3, n_windows=30, position=3, device=toy.device)
    kl = measure_mean_kl(pool, pairs, vectors, onward=onward, max_tokens=50)
    predicted = 0.5 * ((vectors.double() @ F) * vectors).sum(1)
    torch.testing.assert_close(kl, predicted, rtol=0.1, atol=0)
    # by hand, at the steered position(s), with the plain formula
    x = pool.x.clone()
    x[:, 3:] += vectors[0] if onward else torch.tensor([1.0, 0, 0])[:, None] * vectors[0]
    p, q = ((toy._run_from(h, HOOK, (), {})[1] @ toy.unembed.W_U.T).double().log_softmax(-1) for h in (pool.x, x))
    plain = (p.exp() * (p - q)).sum(-1)[:, 3:]
    torch.testing.assert_close(kl[0], (plain if onward else plain[:, :1]).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("onward", [False, True])
@pytest.mark.parametrize("budget", [0.03, 0.3])
def test_a_linear_network_is_steered_consistently(onward: bool, budget: float) -> None:
    toy = make_linear()
    contexts = contexts_of(toy, HOOK, onward=onward)
    directions = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    table = steer_directions(contexts, {"latent": directions, "scaled": 7 * directions}, budget=budget, max_tokens=100)
    assert list(table.columns) == ["kind", "index", "budget", "onward", *COLUMNS]
    np.testing.assert_allclose(table.kl_fit, budget, rtol=0.05)
    assert table.steps.max() <= 3
    np.testing.assert_allclose(table.kl, budget, rtol=0.6)
    np.testing.assert_allclose(table.consistency, 1, atol=1e-5)
    np.testing.assert_allclose(table.mode_share, 1)
    np.testing.assert_allclose(table.on_target + table.within_target + table.side_effect, 1, atol=1e-6)
    np.testing.assert_allclose(table.alpha[:4], table.alpha[4:], rtol=1e-5)  # the norm of a direction does not matter
    norm = contexts.test.x[:, 4].norm(dim=1).mean()
    np.testing.assert_allclose(table.relative_alpha, table.alpha / norm.item(), rtol=1e-5)
    assert table.novel_kl.isna().all()

    # the whole row of one direction by hand
    v = table.alpha[2] * directions[2] / directions[2].norm()
    x = contexts.test.x
    changed, negative = x.clone(), x.clone()
    where = slice(4, None) if onward else slice(4, 5)
    changed[:, where] += v
    negative[:, where] -= v
    W_U = toy.unembed.W_U
    p, q, n = ((toy._run_from(h, HOOK, (), {})[1] @ W_U.T).double().log_softmax(-1) for h in (x, changed, negative))
    kl, kl_negative = ((p.exp() * (p - r)).sum(-1)[:, where].mean() for r in (q, n))
    assert table.kl[2] == pytest.approx(kl.item(), rel=1e-3)
    assert table.asymmetry[2] == pytest.approx((kl_negative / kl).item(), rel=2e-3)
    labels = contexts.test.tokens[:, 5:, None]
    ce = (p - q)[:, 4:-1].gather(-1, labels).mean()
    assert table.ce_increase[2] == pytest.approx(ce.item(), rel=1e-3, abs=1e-6)


def test_the_lens_of_a_network_without_later_blocks_is_the_effect() -> None:
    """At the last hook point without a final norm, the mean effect is proportional to the logit lens."""
    toy = make_linear()
    last = last_hook(toy)
    directions = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    table = steer_directions(contexts_of(toy, last, onward=False), {"latent": directions}, budget=0.1)
    np.testing.assert_allclose(table.lens_pearson, 1, atol=1e-6)
    np.testing.assert_allclose(table.lens_overlap, 1)
    lens = lens_effects(toy, directions, hook=last)
    top = logit_effects(directions, toy.unembed, n_top=5)
    assert lens.topk(5).indices.equal(top.promoted)
    pool = run_pool(toy, draw_windows(2, 5, 9, 0), hook=last, batch=2)
    exact = norm_lens_effects(pool, pair_with_all(3, n_windows=2, position=1, device=toy.device), directions)
    torch.testing.assert_close(exact, lens)


def test_novel_contexts_are_a_part_of_the_test_contexts() -> None:
    toy = make_random_toy(seed=1)
    contexts = contexts_of(toy, HOOK, onward=False)
    directions = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    n = len(contexts.test.tokens)
    masks = torch.zeros(2, n, dtype=torch.bool)
    masks[0] = True
    masks[1, :7] = True
    table = steer_directions(contexts, {"latent": directions, "other": directions}, budget=0.1, novel={"latent": masks})
    assert table.novel_contexts[:2].tolist() == [n, 7]
    assert table.novel_contexts[2:].isna().all()
    assert table.novel_kl[0] == pytest.approx(table.kl[0])
    assert table.novel_consistency[0] == pytest.approx(table.consistency[0])
    assert table.novel_on_target[0] == pytest.approx(table.on_target[0])
    assert table.consistency[0] < 0.999
    assert table.novel_kl[1] != pytest.approx(table.kl[1])
    summary = summarise_steering(table)
    rows = table[table.kind == "latent"]
    assert summary.loc[(0.1, False, "latent"), ("consistency", "mean")] == pytest.approx(rows.consistency.mean())
    assert summary.loc[(0.1, False, "latent"), ("consistency", "standard_error")] == pytest.approx(
        rows.consistency.std() / 2**0.5
    )


def test_a_direction_without_effect_has_no_numbers() -> None:
    toy = make_linear()
    toy.blocks = [lambda h: h, lambda h: h * torch.tensor([1.0, 1, 1, 1, 0])]
    rows = torch.stack([torch.eye(5)[4], torch.eye(5)[0]])
    table = steer_directions(contexts_of(toy, HOOK, onward=False), {"latent": rows}, budget=0.1)
    assert table.alpha.isna().tolist() == [True, False]
    assert table.consistency.isna().tolist() == [True, False]
    with pytest.raises(UserError, match="position 0"):
        run_steering_contexts(
            toy, hook=HOOK, fit=draw_windows(2, 5, 9, 0), test=draw_windows(2, 5, 9, 0), position=0, onward=False,
            n_draws=1, batch=2, seed=0,
        )  # fmt: skip


def test_packaged_model_reaches_the_budget() -> None:
    subject, hook = crux.load_subject("tiny"), "blocks.6.hook_resid_pre"
    fit, test = draw_windows(12, 10, subject.d_vocab, 0), draw_windows(12, 10, subject.d_vocab, 1)
    directions = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    for onward in (False, True):
        contexts = run_steering_contexts(
            subject, hook=hook, fit=fit, test=test, position=6, onward=onward, n_draws=4, batch=6, seed=0
        )
        table = steer_directions(contexts, {"isotropic": directions}, budget=0.1)
        np.testing.assert_allclose(table.kl_fit, 0.1, rtol=0.05)
        assert table.steps.max() <= 3
        np.testing.assert_allclose(table.on_target + table.within_target + table.side_effect, 1, atol=1e-6)
        assert not table.drop(columns=[c for c in table if "novel" in c]).isna().to_numpy().any()


def make_table(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"kind": kind, "index": i, "budget": 0.1, "onward": False, "consistency": value}
        for kind, column in values.items()
        for i, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


def test_two_saes_are_compared_with_intervals_and_with_controls() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 400)  # what a latent and its control have in common
    a = make_table({"latent": [*(base + 0.5), np.nan], "isotropic": [*base, 0.0]})
    b = make_table({"latent": list(rng.normal(0, 1, 300)), "isotropic": list(np.zeros(300))})
    plain, paired = compare_steering(a, b, columns=["consistency"], controls=["isotropic"], n_resamples=2000, seed=1)
    assert (plain.control, paired.control, plain.n_a, plain.n_b) == ("", "isotropic", 400, 300)
    b_values = b[b.kind == "latent"].consistency
    assert plain.difference == pytest.approx(base.mean() + 0.5 - b_values.mean())
    error = math.sqrt(base.var() / 400 + b_values.var() / 300)
    assert plain.low == pytest.approx(plain.difference - 1.96 * error, abs=0.15 * error)
    assert plain.high == pytest.approx(plain.difference + 1.96 * error, abs=0.15 * error)
    assert paired.mean_a == pytest.approx(0.5)
    assert paired.high - paired.low < 0.75 * (plain.high - plain.low)  # pairing removes what both have in common
    again = compare_steering(a, b, columns=["consistency"], controls=["isotropic"], n_resamples=2000, seed=1)
    assert again == [plain, paired]
    with pytest.raises(UserError, match="no directions of the kind pca"):
        compare_steering(a, b, columns=["consistency"], controls=["pca"], n_resamples=10, seed=1)
    with pytest.raises(UserError, match="one KL budget"):
        compare_steering(a, b.assign(budget=0.3), columns=["consistency"], controls=[], n_resamples=10, seed=1)


def test_directions_that_follow_from_the_saes() -> None:
    sae, other = (make_random_sae(d_model=6, n_latents=12, seed=s) for s in (0, 1))
    with torch.no_grad():
        other.W_dec[5] = 3 * sae.W_dec[2]
    found = collect_latent_directions(Site(HOOK, HOOK, sae), np.array([7, 2]), other=Site(HOOK, HOOK, other))
    torch.testing.assert_close(found["latent"], sae.dictionary().detach()[[7, 2]])
    torch.testing.assert_close(found["matched"][1], found["latent"][1])
    torch.testing.assert_close(found["encoder"][0], (sae.W_enc[:, 7] / sae.W_enc[:, 7].norm()).detach())
    assert "encoder" not in collect_latent_directions(Site(HOOK, "blocks.1.hook_mlp_out", sae), np.array([0]))
    with pytest.raises(UserError, match="cannot be matched"):
        collect_latent_directions(
            Site(HOOK, HOOK, sae), np.array([0]), other=Site(HOOK, "blocks.2.hook_resid_pre", other)
        )
