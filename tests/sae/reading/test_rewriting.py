"""Rewritten CE: the rows of the comparison, its extremes, and that a limit on the rules is what makes it depend on the dictionary."""

from pathlib import Path

import numpy as np
import pytest
import torch

from crux.sae.architectures.site import Site
from crux.sae.reading.harvest import Harvest, harvest_codes
from crux.sae.reading.pruned_tree import rank_nodes, refit_nodes
from crux.sae.reading.replacements import measure_replacements, replace_by_values
from crux.sae.reading.rewriting import SAME_RULES, SAME_WITH_DECODER, RewrittenLoss, measure_rewriting
from crux.sae.reading.suffix_means import predict_from_all, predict_from_some, rank_suffixes
from crux.sae.reading.suffix_tree import SuffixTree, grow_suffix_tree
from tests.support.small_saes import make_random_sae, make_scaling_sae
from tests.support.toy_subject import make_random_toy

HOOK = "blocks.1.hook_resid_pre"
STREAM = np.random.default_rng(0).integers(0, 11, 9600).astype(np.uint16)
TOY = make_random_toy(seed=0)
OPTIONS = {"shrinkage": 2.0, "min_count": 3, "depth": 3}


def read(site: Site, folder: Path) -> tuple[Harvest, SuffixTree]:
    harvest = harvest_codes(
        TOY, site, train=STREAM[:8000], held_out=STREAM[8000:], context=8, n_fit=8000, n_held_out=1600,
        end_of_text=None, batch=100, with_activations=True, cache=folder,
    )  # fmt: skip
    return harvest, grow_suffix_tree(harvest.fit.windows, harvest.fit.begins, vocab=11)


def rewrite(site: Site, folder: Path, *, with_x: bool = True) -> tuple[dict[str, RewrittenLoss], Harvest, SuffixTree]:
    harvest, tree = read(site, folder)
    assert harvest.fit.x is not None
    ranked = rank_nodes(tree, harvest.fit.codes, k=10_000, **OPTIONS)
    rules = {
        f"K = {k}": refit_nodes(tree, ranked.first(k), harvest.fit.codes, shrinkage=2.0) for k in (1, 3, 10, 10_000)
    }
    found = measure_rewriting(
        TOY, site, harvest, rules, tree=tree, mean=harvest.fit.x.mean(0, dtype=np.float64),
        x=harvest.fit.x if with_x else None, **OPTIONS, max_tokens=10_000, batch=50,
    )  # fmt: skip
    assert list(found.losses) == [row.replacement for row in found.rows]
    return {row.replacement: row for row in found.rows}, harvest, tree


def test_more_rules_recover_more_and_the_rows_say_what_is_stored(tmp_path: Path) -> None:
    """The SAE is exact, with two latents for each of the six dimensions, so that the ends of the scale are known."""
    rows, harvest, tree = rewrite(Site(HOOK, HOOK, make_scaling_sae(1.0, d_model=6)), tmp_path)
    assert rows["sae"].ce == pytest.approx(rows["clean"].ce, abs=1e-5)
    assert rows["sae"].recovered == rows["sae"].recovered_pos0 == 1
    assert (rows["mean"].recovered, rows["mean"].recovered_error) == (0, 0)
    shares = [rows[f"K = {k}"].recovered for k in (1, 3, 10, 10_000)]
    assert (np.diff([0, *shares, 1]) > 0).all()
    assert rows["K = 3"].n_rules == 36
    assert rows["K = 3"].stored == 36 + 12
    assert rows["K = 3"].stored_with_decoder == 36 + 12 + 13 * 6
    same, counted = rows[f"K = 3: {SAME_RULES}"], rows[f"K = 3: {SAME_WITH_DECODER}"]
    assert (same.n_rules, same.stored) == (7, 48)
    assert (counted.n_rules, counted.stored) == (20, 126)
    assert counted.recovered > same.recovered
    # the line is the best suffixes' means of x itself
    assert harvest.fit.x is not None
    text = harvest.held_out
    best = rank_suffixes(tree, harvest.fit.x, **OPTIONS)[:7]
    values = predict_from_some(tree, best, harvest.fit.x, tree.find(text.windows, text.begins), shrinkage=2.0)
    losses = measure_replacements(TOY, HOOK, text.windows, {"line": replace_by_values(values, text)}, batch=50)
    assert losses["line"].means()["ce"] == pytest.approx(same.ce, abs=1e-6)
    assert losses["line"].means()["kl/rest"] == pytest.approx(same.kl_rest, abs=1e-6)


def test_there_is_no_line_without_activations_at_the_written_hook(tmp_path: Path) -> None:
    rows, _, _ = rewrite(Site(HOOK, HOOK, make_random_sae(d_model=6, n_latents=20, seed=0)), tmp_path, with_x=False)
    assert list(rows) == ["clean", "zero", "mean", "sae", "K = 1", "K = 3", "K = 10", "K = 10000"]


def test_without_a_limit_decoded_rules_are_the_back_off_mean_of_the_reconstruction(tmp_path: Path) -> None:
    """So what rules without a limit recover does not depend on the dictionary, but on the reconstruction alone."""
    sae = make_random_sae(d_model=6, n_latents=20, seed=1)
    harvest, tree = read(Site(HOOK, HOOK, sae), tmp_path)
    found = tree.find(harvest.held_out.windows, harvest.held_out.begins)
    assert harvest.fit.x is not None
    codes = harvest.fit.codes.matrix().toarray()
    x_hat = sae(torch.from_numpy(np.array(harvest.fit.x))).detach().numpy()
    predicted = torch.from_numpy(predict_from_all(tree, codes, found, shrinkage=2.0, depth=3))
    decoded = (predicted @ sae.dictionary() + sae.b_dec).detach().numpy()
    means = predict_from_all(tree, x_hat, found, shrinkage=2.0, depth=3)
    np.testing.assert_allclose(decoded, means, atol=1e-4)
