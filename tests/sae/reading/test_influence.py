"""The second-order influence of latents: known values, an exact quadratic form, and exact ablations."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.reading.ablations import ablate_latents, check_influence, choose_for_ablation
from crux.sae.reading.influence import Influence, measure_influence, select_windows
from crux.sae.reading.interventions import precise_kl
from crux.sae.reading.sparse_codes import SparseCodes, join_codes
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK = "blocks.1.hook_resid_pre"


def sparse(codes: np.ndarray) -> SparseCodes:
    m = scipy.sparse.csr_matrix(codes.astype(np.float32))
    return SparseCodes(m.indptr.astype(np.int64), m.indices.astype(np.int32), m.data, codes.shape[1])


def draw_codes(n_tokens: int, n_latents: int, *, density: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 1.5, (n_tokens, n_latents)) * (rng.random((n_tokens, n_latents)) < density)


def make_coin(scale: float) -> tuple[ToySubject, Tensor]:
    """Return a linear subject that predicts two tokens with probability ½ each, and the change of its logits by a unit of x.

    Then (g·w)² is the same for both labels, so that one draw gives the Fisher information exactly.
    """
    torch.manual_seed(0)
    matrix, a = torch.randn(4, 4), torch.randn(4)
    reading = matrix @ a  # the logits' difference of x is 2 scale x·reading
    embed = torch.randn(5, 4)
    embed -= (embed @ reading)[:, None] * reading / (reading @ reading)
    W_U = scale * torch.stack([a, -a])
    return ToySubject(embed=embed, blocks=[lambda h: h, lambda h: h @ matrix], W_U=W_U), 2 * scale * reading


def test_influence_of_a_linear_network_is_exact() -> None:
    toy, reading = make_coin(0.004)
    windows = np.random.default_rng(1).integers(0, 2, (6, 5))
    dense = draw_codes(30, 7, density=0.5, seed=2)
    dense[:, 6] = 0
    directions = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))
    found = measure_influence(toy, windows, sparse(dense), hook=HOOK, directions=directions, n_draws=2, batch=4, seed=0)
    slopes = (directions.double() @ reading.double()).numpy()  # logit difference per unit of code
    quadratic = (dense**2).mean(0) * slopes**2 / 8  # ½ z² p (1 − p)
    np.testing.assert_allclose(found.kl, quadratic, rtol=1e-5)
    np.testing.assert_allclose(found.kl_halves, np.stack([quadratic, quadratic]), rtol=1e-5)
    at_pos0 = dense.reshape(6, 5, 7)[:, 0]
    np.testing.assert_allclose(found.kl_pos0, (at_pos0**2).sum(0) / 30 * slopes**2 / 8, rtol=1e-5)

    exact = np.log(np.cosh(dense * slopes / 2)).mean(0)  # KL(½ ‖ σ(z)) = ln cosh(z/2)
    ablated = ablate_latents(
        toy,
        windows,
        sparse(dense),
        hook=HOOK,
        directions=directions,
        latents=np.array([4, 0, 6, 2]),
        batch=4,
        max_tokens=10,
    )
    np.testing.assert_allclose(ablated.kl, exact[[4, 0, 6, 2]], rtol=2e-4)
    np.testing.assert_allclose(found.kl[[4, 0, 2]], ablated.kl[[0, 1, 3]], rtol=3e-4)
    assert ablated.own_share[[0, 1, 3]] == pytest.approx(1)
    assert np.isnan(ablated.own_share[2])

    F = np.outer(reading, reading) / 4
    np.testing.assert_allclose(found.fisher, F, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.direction_fisher, slopes**2 / 4 / (directions.numpy() ** 2).sum(1), rtol=1e-4)
    np.testing.assert_allclose(found.energy, (dense**2).mean(0) * (directions.numpy() ** 2).sum(1), rtol=1e-5)
    # the CE's first-order change: next token 0 has logit z/2, token 1 has −z/2, and p = ½
    sign = np.where(windows[:, 1:] == 0, 1, -1)[..., None]
    expected = (sign * dense.reshape(6, 5, 7)[:, :-1] * slopes / 2).sum((0, 1)) / 24
    np.testing.assert_allclose(found.ce_first_order, expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(ablated.ce_increase, expected[[4, 0, 6, 2]], rtol=0.05, atol=2e-5)


def test_derived_numbers_follow_their_definitions() -> None:
    influence = Influence(
        kl=np.array([0.02, 0.001, 0.0]), kl_pos0=np.zeros(3), kl_halves=np.array([[3.0, 2, 0], [5, 1, 0]]),
        ce_first_order=np.array([-0.03, 0.0, 0.0]), energy=np.array([2.0, 3, 0]), firings=np.array([10, 40, 0]),
        fisher=np.diag([0.02, 0.06]),
        directions=np.array([[2.0, 0], [0, 1], [1, 1]]), n_tokens=100, n_draws=4,
    )  # fmt: skip
    np.testing.assert_allclose(influence.strength, [0.2, 0.0025, np.nan])
    np.testing.assert_allclose(influence.use_per_energy, [0.02 / (0.5 * 2 * 0.04), 0.001 / (0.5 * 3 * 0.04), np.nan])
    np.testing.assert_allclose(influence.direction_fisher, [0.02, 0.06, 0.04])
    np.testing.assert_allclose(influence.ce_increase, [-0.01, 0.001, 0])
    assert influence.dead_weight_share() == pytest.approx(3 / 5)  # U = 0.5 is not below 0.5, U = 0.0167 is
    assert influence.dead_weight_share(below=0.51) == pytest.approx(1.0)
    assert np.isnan(influence.halves_spearman)


def make_mixing_toy() -> ToySubject:
    """Return a toy subject that mixes positions, with flat predictions: the gradients of drawn labels have no heavy tails."""
    toy = make_random_toy(seed=5)
    toy._unembed = toy._unembed._replace(W_U=0.3 * toy._unembed.W_U)
    return toy


def exact_fisher(toy: ToySubject, windows: np.ndarray) -> Tensor:
    """Return E[g gᵀ] at every token, summed over the labels of all positions: shape windows × context × d × d."""
    tokens = torch.from_numpy(windows)
    x = toy.clean(tokens, capture=[HOOK]).activations[HOOK]

    def run(one: Tensor) -> Tensor:
        h = toy._run_from(one[None], HOOK, (), {})[1][0]
        return h @ toy.unembed.W_U.T

    fishers = []
    for one in x:
        J = torch.autograd.functional.jacobian(run, one).double()  # position × vocabulary × position × d
        p = run(one).double().softmax(-1)
        cov = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        fishers.append(torch.einsum("svtd,svu,sute->tde", J, cov, J))
    return torch.stack(fishers)


def test_influence_includes_later_positions_and_is_unbiased() -> None:
    toy = make_mixing_toy()
    windows = np.random.default_rng(0).integers(0, 11, (3, 6))
    dense = draw_codes(18, 4, density=0.6, seed=1)
    directions = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    F, w = exact_fisher(toy, windows).reshape(18, 6, 6).numpy(), directions.double().numpy()
    expected = 0.5 * np.einsum("id,tde,ie,ti->i", w, F, w, dense**2) / 18
    own = 0.5 * np.einsum("id,tde,ie,ti->i", w, F[::-1], w, dense**2) / 18  # a wrong assignment of positions
    # 100 copies of each window: many draws in one pass
    found = measure_influence(
        toy, np.tile(windows, (100, 1)), sparse(np.tile(dense, (100, 1))), hook=HOOK, directions=directions, n_draws=20,
        batch=300, seed=0,
    )  # fmt: skip
    spread = np.abs(found.kl_halves[0] - found.kl_halves[1]) / found.kl
    assert spread.max() < 0.1
    np.testing.assert_allclose(found.kl, expected, rtol=0.05)
    assert np.abs(own / expected - 1).max() > 0.1
    np.testing.assert_allclose(found.fisher, F.mean(0), atol=0.06 * np.abs(F.mean(0)).max())


def test_small_changes_have_the_predicted_kl() -> None:
    toy = make_mixing_toy()
    windows = np.random.default_rng(0).integers(0, 11, (3, 6))
    dense = np.eye(18)[:, :8]  # each latent fires once, so that there is no interaction between tokens
    directions = 0.02 * torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    F, w = exact_fisher(toy, windows).reshape(18, 6, 6).numpy(), directions.double().numpy()
    quadratic = 0.5 * np.einsum("id,ide,ie->i", w, F[:8], w) / 18
    exact = ablate_latents(toy, windows, sparse(dense), hook=HOOK, directions=directions, latents=np.arange(8), batch=2)
    np.testing.assert_allclose(exact.kl, quadratic, rtol=0.06)
    assert 0.2 < exact.own_share.min() < exact.own_share.max() <= 1
    assert exact.own_share[5] == pytest.approx(1)  # the last position of its window


def test_batches_and_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, _ = make_coin(0.5)
    windows = np.random.default_rng(1).integers(0, 2, (7, 4))
    codes = sparse(draw_codes(28, 9, density=0.3, seed=2))
    directions = torch.randn(9, 4, generator=torch.Generator().manual_seed(3))

    def measure(batch: int) -> Influence:
        return measure_influence(toy, windows, codes, hook=HOOK, directions=directions, n_draws=2, batch=batch, seed=0)

    whole, again = measure(7), measure(7)
    for a, b in zip(whole[:6], again[:6], strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setattr("crux.sae.reading.influence.PAIRS", 5)
    np.testing.assert_allclose(measure(2).kl, whole.kl, rtol=1e-5)


def test_dictionaries_that_are_measured_together_have_the_influence_that_each_has_alone() -> None:
    toy, _ = make_coin(0.5)
    windows = np.random.default_rng(1).integers(0, 2, (7, 4))
    parts = [sparse(draw_codes(28, n, density=0.3, seed=n)) for n in (9, 4)]
    directions = torch.randn(13, 4, generator=torch.Generator().manual_seed(3))

    def measure(codes: SparseCodes, rows: Tensor) -> Influence:
        return measure_influence(toy, windows, codes, hook=HOOK, directions=rows, n_draws=2, batch=3, seed=0)

    together = measure(join_codes(parts), directions)
    for codes, latents in zip(parts, (slice(0, 9), slice(9, 13)), strict=True):
        alone, mine = measure(codes, directions[latents]), together.select(latents)
        for name in ("kl", "kl_pos0", "kl_halves", "ce_first_order", "energy", "strength", "use_per_energy"):
            np.testing.assert_allclose(getattr(mine, name), getattr(alone, name), rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(mine.firings, alone.firings)


def test_selected_windows_have_their_own_codes() -> None:
    windows = np.arange(40).reshape(10, 4)
    dense = draw_codes(40, 5, density=0.4, seed=0)
    chosen, codes = select_windows(windows, sparse(dense), n_windows=4)
    assert chosen[:, 0].tolist() == [0, 8, 20, 28]
    np.testing.assert_allclose(codes.matrix().toarray(), dense[chosen.reshape(-1)], rtol=1e-6)
    assert len(select_windows(windows, sparse(dense), n_windows=99)[0]) == 10


def test_wrong_arguments_are_refused() -> None:
    toy, _ = make_coin(1.0)
    windows, codes = np.zeros((2, 3), np.int64), sparse(np.ones((6, 2)))
    for n_draws, n_directions, used, message in (
        (3, 2, windows, "even number"), (2, 3, windows, "3 directions"), (2, 2, windows[:1], "windows have 3"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            measure_influence(
                toy, used, codes, hook=HOOK, directions=torch.ones(n_directions, 4), n_draws=n_draws, batch=1, seed=0
            )


def test_agreement_with_exact_values() -> None:
    exact = np.array([1e-5, 1e-4, 1e-3, 0.0, 1e-2])
    found = check_influence(0.8 * exact, exact)
    assert (found.n, found.n_left_out) == (4, 1)
    assert found.log_pearson == pytest.approx(1)
    assert found.spearman == pytest.approx(1)
    assert found.median_ratio == pytest.approx(0.8)
    assert found.bias == pytest.approx(1.25)
    assert found.ratio_quantiles == pytest.approx((0.8,) * 4)
    with pytest.raises(UserError, match="only 0 of 5"):
        check_influence(np.zeros(5), exact)


def test_latents_for_ablation_cover_the_range_of_densities() -> None:
    firings = np.array([0, 50, 3, 7, 1000, 20, 9])
    assert choose_for_ablation(firings, n=3, min_firings=5).tolist() == [3, 5, 4]
    assert choose_for_ablation(firings, n=99, min_firings=5).tolist() == [3, 6, 5, 1, 4]


def test_kl_of_tiny_changes_is_precise() -> None:
    log_p = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    change = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = log_p.exp()
    for size, rtol in ((1.0, 1e-12), (1e-6, 1e-5)):
        log_q = (log_p + size * change).log_softmax(-1)
        plain = (p * (log_p - log_q)).sum(-1)
        variance = (p * change**2).sum(-1) - (p * change).sum(-1) ** 2
        torch.testing.assert_close(
            precise_kl(log_p, log_q), plain if size == 1 else size**2 * variance / 2, rtol=rtol, atol=0
        )
