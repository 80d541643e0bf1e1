"""SAEBench's core metrics against plain formulas, crux's own evaluation, and hand-computed values."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.site import Site
from crux.sae.evaluation.evaluate_sae import evaluate_sae
from crux.sae.reading.saebench_core import SaebenchCore, measure_saebench_core
from tests.support.small_saes import make_random_sae, make_scaling_sae
from tests.support.toy_subject import make_random_toy

HOOK = "blocks.1.hook_resid_pre"
BATCHES = list(torch.randint(0, 11, (3, 4, 7), generator=torch.Generator().manual_seed(2)))


def measure(*, ignored: tuple[int, ...] = (), seed: int = 0) -> SaebenchCore:
    sae = make_random_sae(d_model=6, n_latents=20, seed=seed).fold()
    return measure_saebench_core(
        make_random_toy(seed=0, scale=3.0), Site(HOOK, HOOK, sae), batches=BATCHES, ignored=ignored
    )


def passes(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Return x, x̂, codes and the log-probabilities of three passes, by plain calls."""
    toy, sae = make_random_toy(seed=0, scale=3.0), make_random_sae(d_model=6, n_latents=20, seed=0).fold()
    clean = toy.clean(tokens, capture=[HOOK])
    x = clean.activations[HOOK]
    assert clean.final is not None
    with torch.no_grad():
        codes = sae.encode(x.flatten(0, 1))
        x_hat = sae.decode(codes).view_as(x)
    finals = {
        "clean": clean.final,
        "sae": toy.spliced(clean, {HOOK: lambda _: x_hat}).final,
        "zero": toy.spliced(clean, {HOOK: torch.zeros_like}).final,
    }
    log_p = {name: (h @ toy.unembed.W_U.T).log_softmax(-1) for name, h in finals.items()}
    return x, x_hat, codes.c.view(*tokens.shape, -1), log_p


def test_kl_and_ce_are_those_of_the_evaluation() -> None:
    core = measure()
    sae = make_random_sae(d_model=6, n_latents=20, seed=0).fold()
    evaluation = evaluate_sae(
        make_random_toy(seed=0, scale=3.0), sae, hook=HOOK, batches=BATCHES, mean_activation=torch.zeros(6)
    ).metrics
    ce, kl = core.metrics["model_performance_preservation"], core.metrics["model_behavior_preservation"]
    quality = core.metrics["reconstruction_quality"]
    assert ce["ce_loss_without_sae"] == pytest.approx(evaluation["ce_clean"], abs=1e-5)
    assert ce["ce_loss_with_sae"] == pytest.approx(evaluation["ce_spliced"], abs=1e-5)
    assert ce["ce_loss_with_ablation"] == pytest.approx(evaluation["ce_zero"], abs=1e-5)
    assert ce["ce_loss_score"] == pytest.approx(evaluation["loss_recovered_zero"], abs=1e-4)
    assert kl["kl_div_with_sae"] == pytest.approx(evaluation["kl"], abs=1e-5)
    assert core.explained_variance_centred == pytest.approx(evaluation["explained_variance"], abs=1e-5)
    assert core.mse_per_dimension == pytest.approx(evaluation["mse"], rel=1e-5)
    assert core.metrics["sparsity"]["l0"] == pytest.approx(evaluation["l0"], abs=1e-6)
    assert quality["cossim"] == pytest.approx(evaluation["cosine"], abs=1e-6)
    assert core.metrics["shrinkage"]["l2_ratio"] == pytest.approx(evaluation["norm_ratio"], abs=1e-6)


@pytest.mark.parametrize("ignored", [(), (3, 5)])
def test_every_metric_follows_its_plain_formula(ignored: tuple[int, ...]) -> None:
    core = measure(ignored=ignored)
    per_batch: dict[str, list[Tensor]] = {}
    lists: dict[str, list[Tensor]] = {}
    fires_all, masks = [], []
    for tokens in BATCHES:
        mask = torch.ones_like(tokens, dtype=torch.bool)
        for token in ignored:
            mask &= tokens != token
        x3, x_hat3, c3, log_p = passes(tokens)
        p = log_p["clean"].exp()
        for name in ("sae", "zero"):
            kl = (p * (log_p["clean"] - log_p[name])).sum(-1)
            lists.setdefault(f"kl_{name}", []).append(kl[mask])
        for name, values in log_p.items():
            ce = -values[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
            lists.setdefault(f"ce_{name}", []).append(ce[mask[:, :-1]])
        x, x_hat, c = x3[mask], x_hat3[mask], c3[mask]
        r = (x - x_hat).pow(2).sum(-1)
        lists.setdefault("legacy", []).append(1 - r / (x - x.mean(0)).pow(2).sum(-1))
        lists.setdefault("mse", []).append(r / len(x))
        lists.setdefault("l1", []).append(c.sum(-1))
        lists.setdefault("norm_in", []).append(x.norm(dim=-1))
        lists.setdefault("norm_out", []).append(x_hat.norm(dim=-1))
        per_batch.setdefault("squares", []).append(x.pow(2).sum(-1).mean())
        per_batch.setdefault("per_dimension", []).append(x.pow(2).mean())
        per_batch.setdefault("r", []).append(r.mean())
        per_batch.setdefault("bias", []).append(x_hat.pow(2).sum(-1).mean() / (x * x_hat).sum(-1).mean())
        fires_all.append((c3 > 0) & mask[..., None])
        masks.append(mask)
    mean = {name: float(torch.cat(values).mean()) for name, values in lists.items()}
    batch_mean = {name: float(torch.stack(values).mean()) for name, values in per_batch.items()}
    fires = torch.cat(fires_all).double()  # windows × positions × latents
    density = fires.sum((0, 1)) / torch.cat(masks).sum()
    m = core.metrics
    assert m["model_behavior_preservation"]["kl_div_with_ablation"] == pytest.approx(mean["kl_zero"], abs=1e-5)
    assert m["model_behavior_preservation"]["kl_div_score"] == pytest.approx(
        1 - mean["kl_sae"] / mean["kl_zero"], abs=1e-4
    )
    assert m["model_performance_preservation"]["ce_loss_score"] == pytest.approx(
        (mean["ce_zero"] - mean["ce_sae"]) / (mean["ce_zero"] - mean["ce_clean"]), abs=1e-4
    )
    variance = batch_mean["squares"] - batch_mean["per_dimension"] ** 2
    quality = m["reconstruction_quality"]
    assert quality["explained_variance"] == pytest.approx(1 - batch_mean["r"] / variance, abs=1e-5)
    assert quality["explained_variance_legacy"] == pytest.approx(mean["legacy"], abs=1e-3)
    assert quality["mse"] == pytest.approx(mean["mse"], rel=1e-5)
    assert m["shrinkage"]["relative_reconstruction_bias"] == pytest.approx(batch_mean["bias"], rel=1e-5)
    assert m["shrinkage"]["l2_norm_in"] == pytest.approx(mean["norm_in"], rel=1e-5)
    assert m["shrinkage"]["l2_norm_out"] == pytest.approx(mean["norm_out"], rel=1e-5)
    assert m["sparsity"]["l1"] == pytest.approx(mean["l1"], rel=1e-5)
    torch.testing.assert_close(core.latents["feature_density"], density)
    in_windows = fires.sum((0, 1)) / (fires.sum(1) > 0).sum(0)
    torch.testing.assert_close(core.latents["consistent_activation_heuristic"], in_windows, equal_nan=True)
    misc = m["misc_metrics"]
    assert misc["freq_over_10_percent"] == pytest.approx(float((density > 0.1).double().mean()))
    assert misc["normalized_freq_over_10_percent"] == pytest.approx(float(density[density > 0.1].sum() / density.sum()))
    assert 0 < misc["frac_alive"] == pytest.approx(float((density > 0).double().mean()))
    assert m["token_stats"]["total_tokens_eval_reconstruction"] == 3 * 4 * 7


def test_cosines_of_the_weights() -> None:
    core = measure()
    sae = make_random_sae(d_model=6, n_latents=20, seed=0).fold()
    for name, rows in (("max_encoder_cosine_sim", sae.W_enc.T), ("max_decoder_cosine_sim", sae.W_dec)):
        cosines = F.cosine_similarity(rows[:, None], rows[None], dim=-1).detach().double()
        cosines.fill_diagonal_(-2)
        torch.testing.assert_close(core.latents[name], cosines.amax(1), atol=1e-6, rtol=0)
    misc = core.metrics["misc_metrics"]
    assert misc["average_max_decoder_cosine_sim"] == pytest.approx(float(core.latents["max_decoder_cosine_sim"].mean()))


def test_the_identity_and_zero_have_known_scores() -> None:
    """x̂ = x scores 1 everywhere; x̂ = x/2 has bias ½ and ratio ½; the encoder's and the decoder's directions are the same."""
    toy = make_random_toy(seed=0)
    whole = measure_saebench_core(toy, Site(HOOK, HOOK, make_scaling_sae(1.0, d_model=6)), batches=BATCHES)
    quality = whole.metrics["reconstruction_quality"]
    assert quality["explained_variance"] == quality["explained_variance_legacy"] == pytest.approx(1)
    assert whole.metrics["model_behavior_preservation"]["kl_div_score"] == pytest.approx(1, abs=1e-5)
    assert whole.metrics["model_performance_preservation"]["ce_loss_score"] == pytest.approx(1, abs=1e-5)
    half = measure_saebench_core(toy, Site(HOOK, HOOK, make_scaling_sae(0.5, d_model=6)), batches=BATCHES)
    assert half.metrics["shrinkage"]["relative_reconstruction_bias"] == pytest.approx(0.5)
    assert half.metrics["shrinkage"]["l2_ratio"] == pytest.approx(0.5)
    torch.testing.assert_close(half.latents["encoder_norm"], torch.full((12,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(half.latents["encoder_decoder_cosine_sim"], torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(half.latents["max_decoder_cosine_sim"], torch.zeros(12, dtype=torch.float64))


def test_a_large_mean_inflates_the_published_explained_variance() -> None:
    toy = make_random_toy(seed=0)
    toy.embed = toy.embed + 100
    sae = make_random_sae(d_model=6, n_latents=20, seed=0).start_at(torch.full((6,), 100.0), input_scale=1.0)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)  # no latent fires: x̂ is a constant, close to the mean
    hook = "blocks.0.hook_resid_pre"
    core = measure_saebench_core(toy, Site(hook, hook, sae.fold()), batches=BATCHES)
    assert core.explained_variance_centred <= 0
    assert core.metrics["reconstruction_quality"]["explained_variance"] > 0.99
    assert math.isnan(float(core.latents["consistent_activation_heuristic"][0]))


def test_no_batches_is_an_error() -> None:
    sae = make_random_sae(d_model=6, n_latents=20, seed=0)
    with pytest.raises(UserError, match="no held-out text"):
        measure_saebench_core(make_random_toy(seed=0), Site(HOOK, HOOK, sae), batches=[])
