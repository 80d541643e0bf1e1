"""The evaluation of SAEs, their latents and their files on CUDA equal those of the CPU."""

from pathlib import Path

import pytest
import torch

import crux
from crux.sae.architectures.site import Site
from crux.sae.evaluation.evaluate_sites import SitesEvaluation, evaluate_sites
from crux.sae.evaluation.latents import choose_latents, logit_effects, strongest_contexts
from crux.sae.evaluation.typical_activation import measure_typical_activation
from crux.sae.formats.saelens import load_sae, save_sae
from crux.subjects.subject import Subject
from tests.support.architectures import ARCHITECTURES, make_arguments, perturb_sae
from tests.support.cuda import DEVICE, assert_equal_up_to_rounding
from tests.support.saved_saes import METADATA
from tests.support.small_runs import draw_token_batches, make_gpt2

pytestmark = pytest.mark.gpu

HOOKS = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")


def make_sites(architecture: str, subject: Subject) -> list[Site]:
    """Return two SAEs of one architecture, on the device of the subject."""
    saes = [
        perturb_sae(ARCHITECTURES[architecture](make_arguments(d_model=subject.d_model, n_latents=64, seed=seed)))
        for seed in range(2)
    ]
    return [Site(hook, hook, sae.to(subject.device)) for hook, sae in zip(HOOKS, saes, strict=True)]


def evaluate(architecture: str, subject: Subject) -> SitesEvaluation:
    batches = draw_token_batches(subject, n=3, batch=4, pos=24)
    means = {hook: measure_typical_activation(subject, hook=hook, batches=batches).mean for hook in HOOKS}
    gradient = "data" if architecture == "gradient_topk" else None
    sites = make_sites(architecture, subject)
    return evaluate_sites(subject, sites, batches=batches, means=means, gradient=gradient, short=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_metrics_equal_those_of_the_cpu(architecture: str) -> None:
    """Differences of cross-entropies and shares of small quantities lose digits, so that the tolerance is 0.1 %."""
    expected = evaluate(architecture, make_gpt2(d_model=32))
    actual = evaluate(architecture, make_gpt2(d_model=32).to(device=DEVICE))
    assert actual.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=1e-4)
    for one, other in zip(actual.evaluations, expected.evaluations, strict=True):
        assert one.densities.device.type == one.maxima.device.type == "cpu"
        torch.testing.assert_close(one.densities, other.densities, rtol=0, atol=0.01)  # 288 tokens
        torch.testing.assert_close(one.maxima, other.maxima, rtol=1e-3, atol=1e-4)


def test_contexts_and_effects_of_latents_equal_those_of_the_cpu() -> None:
    results = []
    for device in (torch.device("cpu"), DEVICE):
        subject = make_gpt2(d_model=32).to(device=device)
        site = make_sites("relu", subject)[0]
        batches = draw_token_batches(subject, n=3, batch=4, pos=24)
        densities = evaluate("relu", subject).evaluations[0]
        latents = choose_latents(densities.densities, densities.maxima, n=6)
        contexts = strongest_contexts(
            subject, site.sae, hook=site.read, batches=batches, latents=latents, n_contexts=3, before=4, after=2
        )
        directions = subject.map_to_residual(site.write, site.sae.dictionary()[latents.to(device)])
        effects = logit_effects(directions, subject.unembed, n_top=3)
        results.append((*contexts, *effects))
    for actual, expected in zip(*reversed(results), strict=True):
        assert actual.device.type == "cpu"
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_sae_is_the_same_function(architecture: str, tmp_path: Path) -> None:
    site = make_sites(architecture, make_gpt2(d_model=32).to(device=DEVICE))[0]
    save_sae(site.sae, tmp_path / "sae", METADATA)
    loaded, _ = load_sae(tmp_path / "sae")
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    assert_equal_up_to_rounding(site.sae.fold()(x.to(DEVICE)), loaded(x), architecture)


def test_the_python_interface_evaluates_a_loaded_sae_on_a_subject_on_cuda(tmp_path: Path) -> None:
    subject = crux.load_subject("tiny", device=str(DEVICE))
    arguments = make_arguments(d_model=subject.d_model, n_latents=64)
    save_sae(ARCHITECTURES["relu"](arguments), tmp_path, METADATA)
    sae = crux.load_sae(tmp_path).sae
    text = crux.load_text(subject, n_tokens=1024, batch=2)
    metrics = crux.evaluate(subject, sae, text=text).metrics
    expected = crux.evaluate(crux.load_subject("tiny"), sae, text=text).metrics
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert sae.W_enc.device.type == "cpu"
