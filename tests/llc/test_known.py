"""Known learning coefficients: published values of λ, and the exact means of its estimate at finite nβ."""

import numpy as np
import pytest

from crux.config.errors import UserError
from crux.llc.known import KnownLLC, deep_linear_llc, monomial_estimate, monomial_llc, shallow_linear_estimate


@pytest.mark.parametrize(
    ("widths", "rank", "llc", "multiplicity"),
    [
        ((5, 3, 5), 0, 6.5, 2),
        ((5, 4, 5), 0, 8, 1),
        ((4, 3, 8), 0, 6, 1),
        ((3, 8, 4), 0, 6, 1),
        ((5, 3, 5), 3, 10.5, 1),
        ((5, 3, 5), 1, 8, 1),
        ((10, 5, 10), 2, 29, 2),
        ((3, 3, 3, 3), 0, 3, 1),
        ((3, 3, 3, 3), 1, 4, 3),
        ((4, 4, 4, 4, 4), 2, 7.5, 5),
        ((5, 4, 3, 5), 1, 7.5, 3),
        ((2, 2, 2), 1, 2, 2),
        ((1, 1, 1), 0, 0.5, 2),
        ((1, 1, 1, 1), 0, 0.5, 3),
    ],
)
def test_deep_linear_networks_have_aoyagis_coefficients(
    widths: tuple[int, ...], rank: int, llc: float, multiplicity: int
) -> None:
    assert deep_linear_llc(widths, rank) == KnownLLC(llc, multiplicity)


def test_shallow_linear_networks_agree_with_reduced_rank_regression() -> None:
    """They agree with all four cases of Aoyagi & Watanabe 2005, for M inputs, H hidden units, N outputs and rank r."""
    for M in range(1, 6):
        for H in range(1, 6):
            for N in range(1, 6):
                for r in range(min(M, H, N) + 1):
                    known = deep_linear_llc((M, H, N), r)
                    if N + r <= M + H and M + r <= N + H and H + r <= M + N:
                        odd = (M + H + N + r) % 2
                        llc = (-((H + r) ** 2) - M**2 - N**2 + 2 * (H + r) * (M + N) + 2 * M * N + odd) / 8
                        expected = KnownLLC(llc, 1 + odd)
                    elif N + r > M + H:
                        expected = KnownLLC((H * M - H * r + N * r) / 2, 1)
                    elif M + r > N + H:
                        expected = KnownLLC((H * N - H * r + M * r) / 2, 1)
                    else:
                        expected = KnownLLC(M * N / 2, 1)
                    assert known == expected, (M, H, N, r)


def test_impossible_rank_is_rejected() -> None:
    with pytest.raises(UserError, match="widths \\(5, 3, 5\\) has rank 0 to 3"):
        deep_linear_llc((5, 3, 5), 4)


@pytest.mark.parametrize(
    ("exponents", "llc", "multiplicity", "estimates"),
    [
        ((2,), 0.5, 1, (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)),
        ((2, 2), 0.5, 2, (0.348, 0.356, 0.387, 0.411, 0.437, 0.451)),
        ((2, 4), 0.25, 1, (0.204, 0.209, 0.226, 0.237, 0.246, 0.249)),
        ((4, 4), 0.25, 2, (0.137, 0.141, 0.160, 0.176, 0.195, 0.206)),
        ((2, 6), 1 / 6, 1, (0.142, 0.145, 0.156, 0.162, 0.166, 0.166)),
    ],
)
def test_monomials_at_finite_nbeta(
    exponents: tuple[int, ...], llc: float, multiplicity: int, estimates: tuple[float, ...]
) -> None:
    assert monomial_llc(exponents) == KnownLLC(llc, multiplicity)
    # 145 is n / log n for n = 1,000
    for nbeta, expected in zip((1e2, 145, 1e3, 1e4, 1e6, 1e8), estimates, strict=True):
        assert monomial_estimate(exponents, nbeta) == pytest.approx(expected, abs=6e-4)


def test_multiplicity_lowers_the_estimate_but_not_the_limit() -> None:
    assert monomial_estimate((2, 2, 2), 1e3) < monomial_estimate((2, 2), 1e3) < monomial_estimate((2,), 1e3)
    # with multiplicity m = 3 the gap to the limit is about (m − 1)/log nβ = 2/138
    assert monomial_estimate((2, 2, 2), 1e60) == pytest.approx(0.5, abs=0.02)


def test_shallow_linear_networks_at_finite_nbeta() -> None:
    """One unit per layer gives the monomial a² b² under a Gaussian prior; all networks approach Aoyagi's λ."""
    a = np.linspace(-12, 12, 200_001)
    weights, t = np.exp(-(a**2) / 2), 10.0
    # nβ L = t a² b²/2 with a, b ~ N(0, 1) under the prior; with b integrated out, the posterior mean of nβ L is
    # ½ E_a[t a² (1 + t a²)^{−3/2}] / E_a[(1 + t a²)^{−1/2}], where E_a is the mean under the prior
    direct = (weights * t * a**2 * (1 + t * a**2) ** -1.5).sum() / (weights * (1 + t * a**2) ** -0.5).sum() / 2
    assert shallow_linear_estimate(1, 1, 1, t=t, points=400) == pytest.approx(direct, rel=1e-4)
    assert shallow_linear_estimate(3, 3, 4, t=1e8, points=120) == pytest.approx(
        deep_linear_llc((3, 3, 4), 0).llc, rel=3e-3
    )
    gaps = [
        deep_linear_llc((5, 3, 5), 0).llc - shallow_linear_estimate(5, 3, 5, t=t, points=120) for t in (1e2, 1e4, 1e8)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 0.1
