"""The harvest: codes, activations and tokens of two sides of a text, kept in the cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from crux.config.errors import UserError
from crux.sae.architectures.site import Site
from crux.sae.reading import harvest
from crux.sae.reading.harvest import Harvest, find_text_begins, harvest_codes
from tests.support.small_saes import make_random_sae
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK = "blocks.1.hook_resid_pre"
STREAM = np.random.default_rng(0).integers(0, 11, 700).astype(np.uint16)


def read(cache: Path, *, subject: ToySubject | None = None, batch: int = 3, seed: int = 0) -> Harvest:
    toy = subject or make_random_toy(seed=0)
    sae = make_random_sae(d_model=toy.d_model, n_latents=20, seed=seed)
    return harvest_codes(
        toy, Site(HOOK, HOOK, sae), train=STREAM[:500], held_out=STREAM[500:], context=8, n_fit=160, n_held_out=10_000,
        end_of_text=3, batch=batch, with_activations=True, cache=cache,
    )  # fmt: skip


def test_codes_are_those_of_the_sae(tmp_path: Path) -> None:
    found, toy = read(tmp_path), make_random_toy(seed=0)
    sae = make_random_sae(d_model=toy.d_model, n_latents=20, seed=0)
    assert found.fit.windows.shape == (20, 8)  # 160 tokens, spread over 62 windows
    assert found.fit.windows[1].tolist() == STREAM[3 * 8 : 4 * 8].tolist()
    assert found.held_out.windows.shape == (25, 8)  # all there are
    for side in (found.fit, found.held_out):
        x = toy.clean(torch.from_numpy(side.windows), capture=[HOOK]).activations[HOOK].flatten(0, 1)
        codes = sae.encode(x).c.detach().numpy()
        assert 0 < (codes != 0).mean() < 1
        np.testing.assert_allclose(side.codes.matrix().toarray(), codes, rtol=1e-6)
        np.testing.assert_array_equal(side.codes.by_latent(4, 9).toarray(), side.codes.matrix().toarray()[:, 4:9])
        np.testing.assert_array_equal(side.codes.firings(), (codes != 0).sum(0))
        np.testing.assert_allclose(side.codes.densities(), (codes != 0).mean(0))
        np.testing.assert_array_equal(side.codes.tokens(5, 30).matrix().toarray(), side.codes.matrix().toarray()[5:30])
        assert side.x is not None
        np.testing.assert_array_equal(side.x, x.numpy())


def test_a_text_begins_at_a_window_and_after_an_end_of_text_token() -> None:
    windows = np.array([[1, 3, 2, 2], [3, 1, 1, 3]])
    assert find_text_begins(windows, 3).tolist() == [True, False, True, False, True, True, False, False]
    assert find_text_begins(windows, None).tolist() == [True, False, False, False] * 2


def test_a_second_call_runs_no_pass_and_other_weights_do(tmp_path: Path) -> None:
    first, toy = read(tmp_path), make_random_toy(seed=0)
    second = read(tmp_path, subject=toy)
    assert toy.passes == []
    assert second.folder == first.folder
    np.testing.assert_array_equal(second.held_out.codes.values, first.held_out.codes.values)
    assert read(tmp_path, seed=1).folder != first.folder
    other = make_random_toy(seed=0)
    other.embed = other.embed * 2
    assert read(tmp_path, subject=other).folder != first.folder
    assert len(other.passes) > 0


def test_an_interrupted_pass_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files hold more than what was noted as complete, since the process ended in between."""
    whole = read(tmp_path / "whole")
    monkeypatch.setattr(harvest, "WINDOWS_BETWEEN_NOTES", 4)
    append, calls = harvest._append_codes, []

    def append_or_fail(*arguments: object) -> None:
        calls.append(arguments)
        append(*arguments)  # pyright: ignore[reportArgumentType]
        if len(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(harvest, "_append_codes", append_or_fail)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "cut")
    toy = make_random_toy(seed=0)
    found = read(tmp_path / "cut", subject=toy)
    n_batches = 7 + 9
    assert 5 <= len(toy.passes) < n_batches
    for side, expected in zip(found[:2], whole[:2], strict=True):
        for name in ("indptr", "latents", "values"):
            np.testing.assert_array_equal(getattr(side.codes, name), getattr(expected.codes, name))
        np.testing.assert_array_equal(side.x, expected.x)


def test_a_text_that_is_too_short_and_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    toy, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=20, seed=0)
    arguments = {"context": 8, "n_fit": 160, "n_held_out": 160, "end_of_text": 3, "batch": 3, "with_activations": False}
    with pytest.raises(UserError, match="the held-out text is too short to read latents: 15 tokens"):
        harvest_codes(toy, Site(HOOK, HOOK, sae), train=STREAM, held_out=STREAM[:15], cache=tmp_path, **arguments)  # pyright: ignore[reportArgumentType]
    (tmp_path / "harvests").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        harvest_codes(toy, Site(HOOK, HOOK, sae), train=STREAM, held_out=STREAM, cache=tmp_path, **arguments)  # pyright: ignore[reportArgumentType]
