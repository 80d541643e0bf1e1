"""The schedule of the learning rate: values computed by hand, and properties that hold for all settings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crux.training.schedule import warmup_cosine


@pytest.mark.parametrize(
    ("step", "fraction"),
    [
        (0, 0.25),  # in the code of Braun et al. the first step has rate 0
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),  # cos 0
        (6, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))),
        (8, 0.6),  # halfway: cos π/2
        (12, 0.2),
        (13, 0.2),
    ],
)
def test_the_schedule_has_the_values_computed_by_hand(step: int, fraction: float) -> None:
    found = warmup_cosine(step, warmup_steps=4, max_steps=12, min_lr_factor=0.2)
    assert found == pytest.approx(fraction, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert warmup_cosine(0, warmup_steps=0, max_steps=5, min_lr_factor=0.1) == 1.0


@given(
    warmup=st.integers(0, 50),
    length=st.integers(1, 200),
    least=st.floats(0, 1),
    step=st.integers(0, 300),
)
def test_the_rate_rises_then_falls_to_its_end(warmup: int, length: int, least: float, step: int) -> None:
    def lr_factor(at: int) -> float:
        return warmup_cosine(at, warmup_steps=warmup, max_steps=length, min_lr_factor=least)

    assert lr_factor(0) > 0
    assert lr_factor(step) <= 1 + 1e-12
    if step + 1 < warmup:
        assert lr_factor(step) < lr_factor(step + 1)
    elif step >= warmup:
        assert lr_factor(step) >= lr_factor(step + 1) - 1e-12
        assert lr_factor(step) >= least - 1e-12
