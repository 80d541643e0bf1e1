"""The residual error of an SAE that is trained here on the packaged model lies within the acceptance bands."""

from pathlib import Path

import pytest
import torch

import crux
from crux.sae.architectures.site import Site
from crux.sae.evaluation.typical_activation import measure_typical_activation
from crux.sae.geometry.energy_against_use import measure_energy_against_use
from crux.sae.reading.error_attribution import attribute_to_error
from crux.sae.reading.residual import measure_residual

HOOK = "blocks.6.hook_resid_pre"


@pytest.mark.slow
def test_a_local_sae_has_an_error_that_is_worse_than_noise(tmp_path: Path) -> None:
    run = crux.train(
        ["sae=topk", "sae.k=32", "loss=local", "layer=6", "trainer.max_steps=300", "trainer.batch=4", "tracking=none",
         "evaluation.tokens=4096", "evaluation.latents=2", "seed=0", f"output_dir={tmp_path}"]
    )  # fmt: skip
    subject = crux.load_subject("tiny")
    text = crux.load_text(subject, n_tokens=32_768, batch=8)
    site, held_out = Site(HOOK, HOOK, run.sae), text.held_out[:12:4]
    found = measure_residual(subject, site, fit=text.train, held_out=held_out, n_draws=3, seed=0)
    values = {name: ratio.value or 0.0 for name, ratio in found.ratios.items()}
    assert 1.2 < values["rho_iso"] < 1.5
    assert values["rho_sign"] > 1
    assert values["rho_cov"] > 1
    assert found.norm_deviation < 1e-5
    (isotropic,) = [row for row in found.rows if row.name == "isotropic"]
    assert isotropic.spread < 0.05

    mean = measure_typical_activation(subject, hook=HOOK, batches=text.train).mean
    shares = attribute_to_error(subject, site, batches=held_out, mean_activation=mean, n_steps=10, seed=0)
    assert shares.completeness <= 0.05
    use = measure_energy_against_use(
        subject, site, fit=text.train[:4], held_out=held_out, ks=(1, 10), n_draws=2, seed=0
    )
    assert use.error_use is not None
    assert 0.95 < use.error_use.value < 1.15
    # isotropic noise is small enough for the second order
    assert use.kl_second_order_isotropic == pytest.approx(isotropic.kl, rel=0.15)
    assert torch.isfinite(torch.from_numpy(shares.latents)).all()
