"""Effects of replaced activations against full logits, ratios of sums against resampling, and the joining of single windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crux.config.errors import UserError
from crux.sae.evaluation.intervention_effects import GROUP, measure_effects
from crux.sae.evaluation.ratio_of_sums import ratio_of_sums
from crux.sae.evaluation.reconstruction_passes import join_single_windows
from crux.sae.evaluation.token_moments import TokenMoments, covariance_root
from crux.sae.evaluation.token_permutations import cycle
from tests.support.toy_subject import make_random_toy

HOOK = "blocks.1.hook_resid_pre"


def test_effects_are_those_of_full_logits() -> None:
    toy = make_random_toy(seed=0)
    tokens = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))
    clean = toy.clean(tokens, capture=[HOOK])
    assert clean.final is not None
    x = clean.activations[HOOK]
    values = {str(k): x * k / GROUP for k in range(GROUP + 3)}  # more than one group
    effects = list(measure_effects(toy, tokens, clean, hook=HOOK, replacements=iter(values.items())))
    assert [effect.name for effect in effects] == list(values)
    log_p = (clean.final @ toy.unembed.W_U.T).log_softmax(-1)
    for effect in effects:
        h = toy.blocks[2](toy.blocks[1](values[effect.name]))
        log_q = (h @ toy.unembed.W_U.T).log_softmax(-1)
        kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(effect.kl, kl, atol=1e-5, rtol=1e-5)
        ce = F.cross_entropy(log_q[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, 4)
        torch.testing.assert_close(effect.ce, ce, atol=1e-5, rtol=1e-5)
    assert effects[GROUP].kl.max() < 1e-6  # x itself
    assert effects[0].kl.min() > 1e-3


def test_ratio_of_sums_has_the_standard_error_of_resampled_windows() -> None:
    random = np.random.default_rng(0)
    b = random.gamma(4, size=200)
    a = 1.5 * b + random.normal(size=200)
    found = ratio_of_sums(a, b)
    assert found is not None
    assert found.value == pytest.approx(a.sum() / b.sum())
    samples = random.integers(200, size=(4000, 200))
    resampled = a[samples].sum(1) / b[samples].sum(1)
    assert found.standard_error == pytest.approx(resampled.std(), rel=0.06)
    assert ratio_of_sums(a, 0 * b) is None
    one = ratio_of_sums(np.array([3.0]), np.array([2.0]))
    assert one is not None
    assert one.value == 1.5
    assert np.isnan(one.standard_error)


def test_moments_are_those_of_all_tokens() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 100
    moments = TokenMoments()
    moments.add(x[:20])
    moments.add(x[20:])
    assert moments.n == 50
    torch.testing.assert_close(moments.covariance, torch.cov(x.double().T, correction=0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.second_moment, x.double().T @ x.double() / 50)
    root = covariance_root(moments.covariance)
    torch.testing.assert_close(root @ root.T, moments.covariance)


def test_single_windows_are_joined_to_their_neighbours() -> None:
    def sizes(*numbers: int) -> list[int]:
        windows = [torch.full((n, 3), i) for i, n in enumerate(numbers)]
        joined = list(join_single_windows(windows))
        torch.testing.assert_close(torch.cat(joined), torch.cat(windows))
        return [len(batch) for batch in joined]

    assert sizes(2, 3, 2) == [2, 3, 2]
    assert sizes(2, 3, 1) == [2, 4]
    assert sizes(1, 3, 2) == [4, 2]
    assert sizes(1, 1, 1) == [3]
    for windows, message in (([], "less than two windows"), ([torch.zeros(1, 3)], "less than two windows"),
                             ([torch.zeros(4, 1)], "has 1 token")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            list(join_single_windows([window.long() for window in windows]))


@pytest.mark.parametrize("n", [2, 3, 20])
def test_a_cycle_moves_every_item_and_is_one_cycle(n: int) -> None:
    partners = cycle(n, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))
    place, visited = 0, []
    for _ in range(n):
        visited.append(place)
        place = int(partners[place])
    assert sorted(visited) == list(range(n))
    assert place == 0
