"""Work in threads gives what the same work gives in one thread."""

import threading

import numpy as np
import pytest

from crux.sae.reading import fit_rules, rule_scores, whole_tree
from crux.sae.reading.fit_rules import fit_rule_lists
from crux.sae.reading.fit_text import prepare_fit
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.rule_scores import score_rules
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.threads import map_in_threads
from crux.sae.reading.token_classes import no_classes
from crux.sae.reading.whole_tree import score_whole_tree


def use_threads(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: n)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_results_are_in_the_order_of_the_items(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch, n)
    assert map_in_threads(lambda item: item**2, range(5), "squares") == [0, 1, 4, 9, 16]
    assert map_in_threads(abs, [], "nothing") == []


def test_items_run_at_the_same_time_and_an_error_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch, 3)
    together = threading.Barrier(3, timeout=30)
    assert len(map_in_threads(lambda _: together.wait(), range(3), "waiting")) == 3
    done = []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("the first item")
        done.append(item)

    with pytest.raises(ValueError, match="the first item"):
        map_in_threads(work, range(1000), "working")
    assert len(done) < 1000


def test_rules_and_scores_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_rules, "MAX_BLOCK", 4)
    monkeypatch.setattr(rule_scores, "LATENTS_PER_BLOCK", 4)
    monkeypatch.setattr(whole_tree, "LATENTS_PER_BLOCK", 4)
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        windows = rng.integers(0, 9, (150, 16))
        begins = np.zeros(windows.shape, bool)
        begins[:, 0] = True
        fires = (windows.reshape(-1, 1) + np.arange(18)) % 9 < 2
        dense = keep_nonzero(fires * rng.gamma(2, 1, fires.shape))
        sides.append(ReadText(windows, begins.reshape(-1), dense, None))
    fit, held_out = sides
    text = prepare_fit(fit.windows, fit.begins, no_classes(9))
    found = []
    for n in (1, 3):
        use_threads(monkeypatch, n)
        rules = fit_rule_lists(text, fit.codes, sizes=[2, 5])
        scores = score_rules(rules, fit, held_out)
        tree = score_whole_tree(text, held_out, fit_codes=fit.codes)
        arrays = [array for some in rules.values() for array in some if isinstance(array, np.ndarray)]
        found.append([*arrays, scores.rho, scores.ap, scores.detection, *tree])
    for one, many in zip(*found, strict=True):
        np.testing.assert_array_equal(one, many)
    assert np.isfinite(found[0][-1]).all()


def keep_nonzero(dense: np.ndarray) -> SparseCodes:
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(1))])
    return SparseCodes(
        indptr, np.nonzero(dense)[1].astype(np.int32), dense[dense != 0].astype(np.float32), dense.shape[1]
    )
