"""Losses of passes with replaced activations, token by token, and the shares computed from them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from crux.sae.architectures.codes import Codes
from crux.sae.architectures.site import Site
from crux.sae.evaluation.prediction_metrics import PredictionMetrics, to_numbers
from crux.sae.reading.harvest import Harvest, harvest_codes
from crux.sae.reading.pruned_tree import rank_nodes, refit_nodes
from crux.sae.reading.replacements import (
    TokenLosses,
    build_decoder,
    compare_losses,
    measure_replacements,
    replace_by_rules,
    replace_by_sae,
    replace_by_values,
    replace_by_vector,
    share_recovered,
    spread_text,
)
from crux.sae.reading.rules import predict_dense
from crux.sae.reading.suffix_tree import grow_suffix_tree
from tests.support.small_saes import make_random_sae
from tests.support.toy_subject import make_random_toy

HOOK = "blocks.1.hook_resid_pre"
STREAM = np.random.default_rng(0).integers(0, 11, 1200).astype(np.uint16)
TOY, SAE = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=20, seed=0)


@pytest.fixture(scope="module")
def harvest(tmp_path_factory: pytest.TempPathFactory) -> Harvest:
    return harvest_codes(
        TOY, Site(HOOK, HOOK, SAE), train=STREAM[:800], held_out=STREAM[800:], context=8, n_fit=800, n_held_out=400,
        end_of_text=3, batch=7, with_activations=True, cache=Path(tmp_path_factory.mktemp("cache")),
    )  # fmt: skip


def test_losses_are_those_of_the_evaluation(harvest: Harvest) -> None:
    """The means are those of `PredictionMetrics`, with the SAE itself as the splice function."""
    text = harvest.held_out
    mean = np.arange(6, dtype=np.float64)
    replacements = {"sae": replace_by_sae(SAE, text), "mean": replace_by_vector(mean, text)}
    losses = measure_replacements(TOY, HOOK, text.windows, replacements, batch=9)
    metrics = PredictionMetrics(TOY, ablate={HOOK: torch.from_numpy(mean).float()})
    with torch.no_grad():
        tokens = torch.from_numpy(text.windows)
        clean = TOY.clean(tokens, capture=[HOOK])
        metrics.add(tokens, clean, TOY.spliced(clean, {HOOK: SAE}))
    expected = to_numbers(metrics.results(), device=torch.device("cpu"))
    for suffix in ("", "/pos0", "/rest"):
        for name, ours in (("clean", "ce_clean"), ("sae", "ce_spliced"), ("mean", "ce_mean")):
            assert losses[name].means()[f"ce{suffix}"] == pytest.approx(expected[f"{ours}{suffix}"], rel=1e-5)
        assert losses["sae"].means()[f"kl{suffix}"] == pytest.approx(expected[f"kl{suffix}"], rel=1e-5)
        assert losses["clean"].means()[f"kl{suffix}"] == 0


def test_replacements_return_the_tokens_of_their_windows(harvest: Harvest) -> None:
    text, part = harvest.held_out, slice(3, 8)
    tokens = slice(24, 64)
    assert text.x is not None
    x_hat = SAE(torch.tensor(text.x[tokens])).detach().numpy()
    np.testing.assert_allclose(replace_by_sae(SAE, text)(part), x_hat, atol=1e-5)
    np.testing.assert_array_equal(replace_by_values(text.x, text)(part), text.x[tokens])
    np.testing.assert_array_equal(replace_by_vector(np.ones(6), text)(part), np.ones((40, 6)))


@pytest.mark.parametrize("k", [0, 2, 100])
def test_rules_replace_every_code_by_its_prediction(harvest: Harvest, k: int) -> None:
    """Also in a scaled SAE, whose output scale the decoder has to undo."""
    sae = make_random_sae(d_model=6, n_latents=20, seed=0)
    sae.start_at(torch.arange(6.0), input_scale=0.5, output_scale=0.25)
    tree = grow_suffix_tree(harvest.fit.windows, harvest.fit.begins, vocab=11)
    kept = rank_nodes(tree, harvest.fit.codes, k=k, shrinkage=2.0, min_count=3, depth=3)
    rules = refit_nodes(tree, kept, harvest.fit.codes, shrinkage=2.0)
    text = harvest.held_out
    codes = torch.from_numpy(predict_dense(rules, text.windows[2:9], text.begins[16:72]))
    expected = sae.decode(Codes(codes, codes)).detach().numpy()
    np.testing.assert_allclose(replace_by_rules(sae, rules, text)(slice(2, 9)), expected, atol=1e-4)
    dense = codes.numpy()
    np.testing.assert_allclose(build_decoder(sae)(dense), expected, atol=1e-4)


def test_shares_and_their_standard_errors() -> None:
    rng = np.random.default_rng(0)

    def make_losses(level: float, slope: float) -> TokenLosses:
        ce = level + slope * difficulty + 0.1 * rng.standard_normal((2000, 7))
        return TokenLosses(ce.astype(np.float32), np.zeros((2000, 8), np.float32))

    difficulty = rng.gamma(2, 1, (2000, 1))
    worst, ours, best = make_losses(5, 1), make_losses(3, 0.5), make_losses(1, 0.2)
    share = share_recovered(ours, none=worst, all_of_it=best)
    means = [losses.ce.mean(dtype=np.float64) for losses in (worst, ours, best)]
    assert share.value == pytest.approx((means[0] - means[1]) / (means[0] - means[2]), abs=1e-9)
    resampled = []
    for _ in range(400):
        rows = rng.integers(0, 2000, 2000)
        parts = [TokenLosses(losses.ce[rows], losses.kl) for losses in (ours, worst, best)]
        resampled.append(share_recovered(parts[0], none=parts[1], all_of_it=parts[2]).value)
    assert share.standard_error == pytest.approx(np.std(resampled), rel=0.15)
    assert share_recovered(worst, none=worst, all_of_it=best).value == 0
    assert share_recovered(best, none=worst, all_of_it=best)[:2] == (1, pytest.approx(0, abs=1e-12))
    assert np.isnan(share_recovered(ours, none=best, all_of_it=best)).all()
    difference = compare_losses(worst, ours)
    assert difference.value == pytest.approx(means[0] - means[1], abs=1e-6)
    gaps = (worst.ce - ours.ce).mean(1)
    assert difference.standard_error == pytest.approx(gaps.std(ddof=1) / np.sqrt(2000), rel=1e-4)
    first = share_recovered(ours, none=worst, all_of_it=best, positions=slice(0, 1))
    sums = [losses.ce[:, 0].mean(dtype=np.float64) for losses in (worst, ours, best)]
    assert first.value == pytest.approx((sums[0] - sums[1]) / (sums[0] - sums[2]), abs=1e-9)


def test_a_part_of_a_text_has_the_codes_of_its_windows(harvest: Harvest) -> None:
    text = harvest.held_out
    part = spread_text(text, 100)
    chosen = np.arange(12) * 50 // 12
    np.testing.assert_array_equal(part.windows, text.windows[chosen])
    np.testing.assert_array_equal(part.begins.reshape(12, 8), text.begins.reshape(50, 8)[chosen])
    dense = text.codes.matrix().toarray().reshape(50, 8, 20)[chosen].reshape(96, 20)
    np.testing.assert_array_equal(part.codes.matrix().toarray(), dense)
    np.testing.assert_array_equal(spread_text(text, 10**9).codes.values, text.codes.values)
