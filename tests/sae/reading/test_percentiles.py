"""Percentiles among controls and the comparison of pairs, against values computed by hand."""

import numpy as np

from crux.sae.reading.percentiles import compare_pairs, percentiles, percentiles_at_density

NAN = float("nan")


def test_percentiles_count_half_of_the_equals() -> None:
    controls = np.array([1.0, 2, 2, 3, NAN])
    found = percentiles(np.array([0.0, 1, 2, 2.5, 4, NAN]), controls)
    np.testing.assert_array_equal(found, [0, 12.5, 50, 75, 100, NAN])
    assert np.isnan(percentiles(np.array([1.0]), np.array([NAN]))).all()
    assert np.isnan(percentiles(np.array([1.0]), np.zeros(0))).all()


def test_percentiles_of_the_controls_themselves_have_the_mean_50() -> None:
    scores = np.random.default_rng(0).integers(0, 30, 500).astype(float)
    assert percentiles(scores, scores).mean() == 50


def test_a_latent_is_compared_with_controls_of_its_density() -> None:
    """The score equals the log density: among all controls, a percentile would only say how dense the latent is."""
    control_densities = np.array([0.4, 0.1, 0.3, 0.2, 0.5, 0.6])
    controls = np.log(control_densities)
    densities = np.array([0.31, 0.01, 0.9, 0.25])
    values = np.array([np.log(0.31), -9, 9, NAN])
    found = percentiles_at_density(
        values, controls, densities=densities, control_densities=control_densities, n_nearest=2
    )
    np.testing.assert_array_equal(found, [50, 0, 100, NAN])  # among 0.3 and 0.4, among 0.1 and 0.2, among 0.5 and 0.6
    all_of_them = percentiles_at_density(
        values, controls, densities=densities, control_densities=control_densities, n_nearest=99
    )
    np.testing.assert_array_equal(all_of_them, percentiles(values, controls))
    none = np.full(6, NAN)
    assert np.isnan(
        percentiles_at_density(values, none, densities=densities, control_densities=control_densities, n_nearest=2)
    ).all()


def test_controls_without_a_score_are_not_neighbours() -> None:
    found = percentiles_at_density(
        np.array([5.0]), np.array([NAN, 1.0, 9.0]), densities=np.array([0.2]),
        control_densities=np.array([0.2, 0.1, 0.3]), n_nearest=2,
    )  # fmt: skip
    assert found.tolist() == [50]


def test_a_comparison_of_pairs() -> None:
    found = compare_pairs(np.array([3.0, 5, 7, NAN, 1]), np.array([1.0, 1, 3, 2, NAN]))
    assert found[:4] == (3, 5, 5 / 3, 10 / 3)
    np.testing.assert_allclose(found.standard_error, np.std([2, 4, 4], ddof=1) / np.sqrt(3))
    one = compare_pairs(np.array([3.0]), np.array([1.0]))
    assert one.difference == 2
    assert np.isnan(one.standard_error)
    assert np.isnan(compare_pairs(np.array([NAN]), np.array([1.0])).latents)
