"""Rewritten CE and controls on the packaged model, with an SAE that is trained for some seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch

import crux
from crux.sae.architectures.site import Site
from crux.sae.reading.control_saes import train_frozen_decoder_sae
from crux.sae.reading.directions import measure_moments
from crux.sae.reading.harvest import harvest_codes
from crux.sae.reading.pruned_tree import rank_nodes, refit_nodes
from crux.sae.reading.rewriting import SAME_RULES, SAME_WITH_DECODER, measure_rewriting
from crux.sae.reading.suffix_tree import grow_suffix_tree
from tests.support.small_saes import make_scaling_sae

HOOK = "blocks.6.hook_resid_pre"
OPTIONS = {"shrinkage": 2.0, "min_count": 3, "depth": 2}


@pytest.mark.slow
def test_each_further_rule_recovers_more_of_the_cross_entropy(tmp_path: Path) -> None:
    subject = crux.load_subject("tiny")
    text = crux.load_text(subject, n_tokens=65_536)
    streams = {
        name: np.concatenate([batch.numpy().ravel() for batch in getattr(text, name)]) for name in ("train", "held_out")
    }
    arguments = {
        **streams, "context": 256, "n_fit": 65_536, "n_held_out": 8_192, "end_of_text": None, "batch": 16, "cache": tmp_path
    }  # fmt: skip
    # the codes of this one are not used, only the activations
    site = Site(HOOK, HOOK, make_scaling_sae(1.0, d_model=128))
    x = harvest_codes(subject, site, with_activations=True, **arguments).fit.x
    assert x is not None
    moments = measure_moments(x)
    sae = train_frozen_decoder_sae(
        x, moments=moments, n_latents=512, k=16, steps=150, batch=512, lr=3e-3, seed=0, device=torch.device("cpu")
    )
    site = Site(HOOK, HOOK, sae)
    harvest = harvest_codes(subject, site, with_activations=False, **arguments)
    tree = grow_suffix_tree(harvest.fit.windows, harvest.fit.begins, vocab=subject.d_vocab)
    ranked = rank_nodes(tree, harvest.fit.codes, k=30, **OPTIONS)
    rules = {f"{k}": refit_nodes(tree, ranked.first(k), harvest.fit.codes, shrinkage=2.0) for k in (1, 3, 10, 30)}
    found = measure_rewriting(
        subject, site, harvest, rules, tree=tree, mean=moments.mean, x=x, **OPTIONS, max_tokens=8_192, batch=8
    )
    rows = {row.replacement: row for row in found.rows}
    assert rows["clean"].ce < rows["sae"].ce < rows["mean"].ce
    shares = [rows[name].recovered for name in ("1", "3", "10", "30")]
    assert (np.diff([0, *shares, 1]) > 0).all()
    assert 0 < rows["10"].recovered_error < 0.05
    assert rows[f"10: {SAME_WITH_DECODER}"].recovered > rows[f"10: {SAME_RULES}"].recovered > 0
