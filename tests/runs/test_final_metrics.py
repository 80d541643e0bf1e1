"""Final metrics that are not finite numbers."""

import math

from crux.runs.final_metrics import find_non_finite


def test_finite_metrics_have_no_error() -> None:
    assert find_non_finite({"final/l0": 3.0, "final/mse": 1e300}) is None


def test_the_metrics_and_the_cause_are_named() -> None:
    error = find_non_finite({"final/l0": 3.0, "final/mse": math.inf, "final/kl": math.nan})
    assert str(error) == (
        "final metrics are not finite numbers (mse is inf, kl is nan); what was trained has diverged: try a lower optimizer.lr"
    )


def test_the_model_is_blamed_for_its_own_predictions() -> None:
    names = ("ce_clean", "ce_spliced", "ce_clean/rest", "kl", "ce_increase", "ce_mean")
    error = find_non_finite({f"final/{name}": math.nan for name in names})
    assert "(ce_clean is nan, ce_spliced is nan, ce_clean/rest is nan, kl is nan, 2 more)" in str(error)
    assert "the unmodified model are not finite" in str(error)
    assert "optimizer.lr" not in str(error)
