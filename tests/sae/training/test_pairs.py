"""Every architecture with every loss: it trains, and a resumed run equals an uninterrupted one."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from crux.sae.architectures.options import Auxk
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Steering
from tests.support.architectures import ARCHITECTURES, make_arguments
from tests.support.interrupted_runs import assert_resumed_equals_uninterrupted
from tests.support.small_runs import (
    HOOK,
    LOSSES,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_module,
    make_optimizer,
    make_training_batches,
)

STEPS = 8
INITIAL_LAMBDA = {"relu": 0.05, "p_anneal": 0.05, "jumprelu": 0.001, "gated": 0.05}
"""The λ from which it is steered; the other architectures have a fixed k and no λ."""
MAIN_TERM = {"local": "mse", "e2e": "kl", "e2e_ds": "downstream", "fisher": "mse", "kl_finetune": "mse"}


def make_sae(architecture: str) -> SAE:
    return ARCHITECTURES[architecture](make_arguments(d_model=16, n_latents=32, init_norm=1.0))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_pair_trains_and_resumes(architecture: str, loss: Loss, tmp_path: Path) -> None:
    """Train with everything that has a state: AuxK with latents dead for two steps, drawn labels, a steered λ, and schedules.

    At the checkpoint after step 3, p-annealing is in its first stage, λ is being steered, and kl_finetune is still local.
    """

    def job() -> tuple[SAEModule, Sequence[Any]]:
        subject = make_gpt2()
        sites = [Site(HOOK, HOOK, make_sae(architecture))]
        module = make_module(
            loss,
            subject,
            sites=sites,
            optimizer=make_optimizer(lr=1e-2),
            max_steps=STEPS,
            sparsity=INITIAL_LAMBDA.get(architecture, 0.0),
            steering=Steering(4.0, STEPS) if architecture in INITIAL_LAMBDA else None,
            auxk=Auxk(1 / 32, 4, dead_after=2 * 48),
            target="sampled",
        )
        tokens = draw_token_batches(subject, n=STEPS, batch=4)
        return module, make_training_batches(loss, subject, tokens, sites=sites, target="sampled")

    whole = assert_resumed_equals_uninterrupted(job, tmp_path, steps=STEPS, killed_after=5)
    rows = whole.read_history()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    term = [row[f"train/{MAIN_TERM[loss]}"] for row in rows]
    assert sum(term[-2:]) < 0.9 * sum(term[:2])
    auxk = [row["train/auxk"] for row in rows]
    assert auxk[:3] == 3 * [0.0]
    assert auxk[3] > 0, "some latents should have been dead"
    if architecture in INITIAL_LAMBDA:
        weights = [row["train/lambda"] for row in rows]
        assert weights[0] == pytest.approx(INITIAL_LAMBDA[architecture])
        assert weights[0] == weights[1]
        assert len(set(weights[1:])) == STEPS - 1, "λ should change in every step after the first"
    else:
        assert "train/lambda" not in rows[0]
    state = torch.load(whole.checkpoint, weights_only=True)["state_dict"]  # after six steps
    if architecture == "p_anneal":
        assert state["saes.0.stage"] == 2, "the schedule should have been advanced in every step"
    elif architecture in ("batch_topk", "matryoshka", "gradient_topk"):
        assert state["saes.0.observed_n"] == 6, "running means should have been updated in every step"


@pytest.mark.parametrize("loss", ["local", "e2e"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_precision_has_consistent_dtypes(architecture: str, loss: Loss) -> None:
    """Train as on CUDA, where products are in bfloat16 and weights stay in float32."""
    subject = make_gpt2()
    sites = [Site(HOOK, HOOK, make_sae(architecture))]
    module = make_module(loss, subject, sites=sites, auxk=Auxk(1 / 32, 4, dead_after=-1))
    batch = make_training_batches(loss, subject, draw_token_batches(subject, n=1), sites=sites)[0]
    with torch.autocast("cpu", torch.bfloat16):
        value = module.training_step(batch, 0)
    value.backward()
    for name, parameter in sites[0].sae.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert sites[0].sae.W_enc.grad is not None
