"""The signs of an SAE that has diverged."""

import pytest

from crux.sae.evaluation.divergence import describe_divergence

GOOD = {"final/ce_clean": 3.0, "final/ce_mean": 7.0, "final/ce_increase": 0.4, "final/l0": 20.0}


@pytest.mark.parametrize(
    ("changes", "signs"),
    [
        ({}, ""),
        ({"final/ce_increase": 4.05}, ""),  # as bad as mean ablation, within noise
        ({"final/ce_increase": 8.3}, "CE loss increase of 8.3 nats, more than the 4 of mean ablation"),
        ({"final/l0": 0.0}, "no latent fires"),
        ({"final/l0": 0.002}, "L0 of 0.002, so that most tokens have no latent"),
        ({"final/l0": 0.11}, ""),
        ({"final/l0/pos0": 0.0, "final/with_gradient/l0": 0.0}, ""),
        ({"final/blocks.2.hook_resid_pre/l0": 0.0}, "no latent fires at blocks.2.hook_resid_pre"),
        ({"final/ce_increase": 8.3, "final/l0": 0.0}, "CE loss increase of 8.3 nats, more than the 4 of mean ablation; no latent fires"),
    ],
)  # fmt: skip
def test_signs(changes: dict[str, float], signs: str) -> None:
    assert describe_divergence(GOOD | changes) == signs


def test_without_ablations_only_the_latents_are_judged() -> None:
    assert describe_divergence({"final/ce_increase": 9.0, "final/l0": 5.0}) == ""
