"""Contexts in which rules are wrong, against dense predictions, and the change of the cross-entropy by token against plain passes."""

import numpy as np
import pytest
import torch

from crux.sae.architectures.site import Site
from crux.sae.figures.features_page_data import PageContexts
from crux.sae.reading.ce_by_token import add_ce_changes
from crux.sae.reading.contexts import ContextCounts, find_contexts
from crux.sae.reading.fit_rules import fit_rules
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.near_misses import MISSED, SILENT, add_near_misses
from crux.sae.reading.quick_read import read_batches
from crux.sae.reading.rules import Rules, predict_dense
from crux.sae.reading.token_classes import no_classes
from tests.support.small_saes import make_random_sae
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK, N, WIDTH = "blocks.1.hook_resid_pre", 12, 16
LATENTS = np.array([7, 0, 3, 11])


@pytest.fixture(scope="module")
def toy() -> ToySubject:
    return make_random_toy(seed=0)


@pytest.fixture(scope="module")
def site(toy: ToySubject) -> Site:
    return Site(HOOK, HOOK, make_random_sae(d_model=toy.d_model, n_latents=N, seed=0))


def read_side(toy: ToySubject, site: Site, seed: int) -> ReadText:
    tokens = torch.randint(11, (60, WIDTH), generator=torch.Generator().manual_seed(seed))
    return read_batches(toy, site, tokens.split(20))


@pytest.fixture(scope="module")
def text(toy: ToySubject, site: Site) -> ReadText:
    return read_side(toy, site, 1)


@pytest.fixture(scope="module")
def contexts(text: ReadText) -> PageContexts:
    return find_contexts(text, LATENTS, counts=ContextCounts(3, 2, 1, 1))


@pytest.fixture(scope="module")
def rules(toy: ToySubject, site: Site) -> Rules:
    return fit_rules(read_side(toy, site, 2), n_rules=2, token_classes=no_classes(11))


@pytest.fixture(scope="module")
def with_misses(contexts: PageContexts, text: ReadText, rules: Rules) -> PageContexts:
    return add_near_misses(contexts, text, rules, LATENTS, n=3)


def context_codes(contexts: PageContexts, i: int) -> np.ndarray:
    before = contexts.lengths[:i].sum()
    return contexts.codes[before : before + contexts.lengths[i]]


def test_contexts_are_where_rules_are_most_wrong(with_misses: PageContexts, text: ReadText, rules: Rules) -> None:
    predicted, code = predict_dense(rules, text.windows, text.begins), text.codes.matrix().toarray()
    assert with_misses.group_names[-2:] == (SILENT, MISSED)
    owners, peaks = np.repeat(LATENTS, np.diff(with_misses.offsets)), with_misses.starts + with_misses.peaks
    assert with_misses.predicted is not None
    np.testing.assert_allclose(with_misses.predicted, predicted[peaks, owners], rtol=1e-5)
    names = np.array(with_misses.group_names)[with_misses.groups]
    n_silent = 0
    for latent in LATENTS.tolist():
        silent = peaks[(owners == latent) & (names == SILENT)]
        missed = peaks[(owners == latent) & (names == MISSED)]
        wrong = (code[:, latent] == 0) & (predicted[:, latent] > rules.floor[latent] + 1e-6)
        n_windows = len(set((np.flatnonzero(wrong) // WIDTH).tolist()))
        assert len(silent) == min(3, n_windows)
        n_silent += len(silent)
        assert len(missed) == 3
        assert (code[silent, latent] == 0).all()
        if len(silent):
            assert predicted[silent[0], latent] == predicted[wrong, latent].max()
        error = (code - predicted)[:, latent]
        assert error[missed[0]] == pytest.approx(error.max())
        assert (np.diff(error[missed]) <= 1e-6).all()
        for chosen in (silent, missed):
            assert len(set((chosen // WIDTH).tolist())) == len(chosen)
    assert n_silent > 1


def test_the_other_contexts_and_all_codes_stay(
    with_misses: PageContexts, contexts: PageContexts, text: ReadText
) -> None:
    old = np.flatnonzero(with_misses.groups < len(contexts.group_names))
    for name in ("groups", "starts", "lengths", "peaks"):
        np.testing.assert_array_equal(getattr(with_misses, name)[old], getattr(contexts, name))
    code, owners = text.codes.matrix().toarray(), np.repeat(LATENTS, np.diff(with_misses.offsets))
    for i, (start, length) in enumerate(zip(with_misses.starts, with_misses.lengths, strict=True)):
        maximum = code[:, owners[i]].max()
        np.testing.assert_allclose(
            context_codes(with_misses, i) * maximum / 255, code[start : start + length, owners[i]], atol=maximum / 255
        )


def test_the_change_of_the_ce_is_that_of_a_pass_without_the_latent(
    toy: ToySubject, site: Site, text: ReadText, with_misses: PageContexts
) -> None:
    rows, directions = np.array([1, 3]), site.sae.dictionary().detach()[torch.from_numpy(LATENTS)]
    found = add_ce_changes(with_misses, toy, text, LATENTS, rows=rows, hook=HOOK, directions=directions, batch=4)
    assert found.ce_known is not None
    assert found.ce_changes is not None
    owners = np.repeat(np.arange(len(LATENTS)), np.diff(found.offsets))
    chosen = np.flatnonzero(found.ce_known)
    assert chosen.tolist() == [i for i, row in enumerate(owners) if row in rows and found.groups[i] == 0]
    code, position = torch.from_numpy(text.codes.matrix().toarray()), 0
    for i in chosen.tolist():
        window, first = divmod(int(found.starts[i]), WIDTH)
        tokens, row = torch.from_numpy(text.windows[window : window + 1]), int(owners[i])
        clean = toy.clean(tokens, capture=[HOOK])
        c = code[window * WIDTH : (window + 1) * WIDTH, int(LATENTS[row])]
        spliced = toy.spliced(clean, {HOOK: lambda x, c=c, row=row: x - c[:, None] * directions[row]})
        assert clean.final is not None
        log_p, log_q = (
            (final[0] @ toy.unembed.W_U.T + (toy.unembed.b_U if toy.unembed.b_U is not None else 0)).log_softmax(-1)
            for final in (clean.final, spliced.final)
        )
        change = torch.zeros(WIDTH)
        change[1:] = (log_p - log_q)[:-1].gather(1, tokens[0, 1:, None])[:, 0].detach()
        length = int(found.lengths[i])
        expected = change[first : first + length]
        np.testing.assert_allclose(found.ce_changes[position : position + length], expected, atol=1e-5)
        position += length
    assert position == len(found.ce_changes)
    assert np.abs(found.ce_changes).max() > 1e-3
