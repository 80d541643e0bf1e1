"""The batches of local losses: activations shuffled across sequences, for any order of access, and token batches after them."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crux.sae.label_gradients import LabelGradients, clean_with_label_gradients
from crux.sae.losses.label import LabelTarget
from crux.sae.training.activations import Activations, ShuffledActivations
from crux.subjects.subject import Subject
from crux.training.data import ConcatenatedBatches
from tests.support.small_runs import HOOK, draw_token_batches, make_gpt2, make_module

N_BATCHES, GROUP = 7, 3  # the last group is shorter
SECOND = "blocks.1.hook_mlp_out"


@cache
def make_subject() -> Subject:
    return make_gpt2()


def make_source(
    *,
    seed: int = 0,
    group: int = GROUP,
    skip_positions: tuple[int, ...] = (),
    hooks: Sequence[str] = (HOOK,),
    target: LabelTarget | None = None,
    tokens: Sequence[Tensor] | None = None,
) -> ShuffledActivations:
    return ShuffledActivations(
        draw_token_batches(make_subject(), n=N_BATCHES) if tokens is None else tokens,
        subject=make_subject(),
        hooks=hooks,
        gradients=None if target is None else LabelGradients(make_subject(), tuple(hooks), target),
        group=group,
        seed=seed,
        skip_positions=skip_positions,
    )


def assert_equal(a: Activations, b: Activations) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(x, right[hook]) for hook, x in left.items())


def compute_activations(first: int, last: int) -> Tensor:
    """Return the activations of token batches `first` to `last` (not included), with shape batch × pos × d."""
    tokens = torch.cat(draw_token_batches(make_subject(), n=N_BATCHES)[first:last])
    return make_subject().clean(tokens, capture=[HOOK], final=False).activations[HOOK]


def sort_rows(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].sort(stable=True).indices]


@pytest.mark.parametrize("group", [(0, 3), (3, 6), (6, 7)])
def test_a_group_is_a_permutation_of_its_activations_across_sequences(group: tuple[int, int]) -> None:
    source = make_source()
    rows = [source[i].values[HOOK] for i in range(*group)]
    clean = compute_activations(*group)
    assert [len(r) for r in rows] == [24] * len(rows)
    torch.testing.assert_close(sort_rows(torch.cat(rows)), sort_rows(clean.flatten(0, 1)), rtol=1e-5, atol=1e-6)
    near = torch.cdist(rows[0].double(), clean.flatten(0, 1).double()).argmin(1)
    assert len(set((near // clean.shape[1]).tolist())) > 1, "all rows of a batch come from one sequence"
    assert near.tolist() != sorted(near.tolist())


def test_skipped_positions_are_left_out() -> None:
    source = make_source(skip_positions=(0, 5))
    rows = torch.cat([source[i].values[HOOK] for i in range(GROUP)])
    kept = [p for p in range(12) if p not in (0, 5)]
    expected = compute_activations(0, GROUP)[:, kept].flatten(0, 1)
    assert len(rows) == GROUP * 2 * 10
    torch.testing.assert_close(sort_rows(rows), sort_rows(expected), rtol=1e-5, atol=1e-6)


@cache
def first_batch(seed: int, target: LabelTarget | None, i: int) -> Activations:
    """Return batch i from a new source, as the first batch that is requested."""
    return make_source(seed=seed, target=target, hooks=(HOOK, SECOND))[i]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, N_BATCHES - 1), min_size=1, max_size=8),
    st.integers(0, 1),
    st.sampled_from([None, "data", "sampled"]),
)
def test_batch_i_is_a_pure_function_of_seed_and_i(order: list[int], seed: int, target: LabelTarget | None) -> None:
    """The gradients of drawn labels are part of the batch."""
    source = make_source(seed=seed, target=target, hooks=(HOOK, SECOND))
    for i in order:
        assert_equal(source[i], first_batch(seed, target, i))


def test_seeds_and_groups_shuffle_differently() -> None:
    assert not torch.equal(make_source(seed=0)[0].values[HOOK], make_source(seed=1)[0].values[HOOK])
    source = make_source(tokens=[draw_token_batches(make_subject(), n=1)[0]] * 2, group=1, target="sampled")
    first, second = source[0], source[1]
    assert not torch.equal(first.values[HOOK], second.values[HOOK])
    # other labels for the same text: g differs even if the activation is the same
    matched = torch.cdist(first.values[HOOK].double(), second.values[HOOK].double()).argmin(1)
    torch.testing.assert_close(second.values[HOOK][matched], first.values[HOOK])
    apart = (second.gradients[HOOK][matched] - first.gradients[HOOK]).norm(dim=-1)
    assert (apart > 0.1 * first.gradients[HOOK].norm(dim=-1)).float().mean() > 0.5


@pytest.mark.parametrize("skip_positions", [(), (0, 5)])
@pytest.mark.parametrize("target", ["data", "top_logit"])
def test_rows_of_all_hook_points_and_gradients_belong_to_one_token(
    target: LabelTarget, skip_positions: tuple[int, ...]
) -> None:
    hooks = (HOOK, SECOND)
    source = make_source(hooks=hooks, target=target, skip_positions=skip_positions)
    kept = [p for p in range(12) if p not in skip_positions]
    expected: list[Activations] = []
    for tokens in draw_token_batches(make_subject(), n=N_BATCHES)[3:6]:
        clean, g = clean_with_label_gradients(
            make_subject(), tokens, hooks=hooks, target=target, generator=torch.Generator(), capture=hooks
        )
        expected.append(
            Activations(
                {h: clean.activations[h][:, kept].flatten(0, 1) for h in hooks},
                {h: g[h][:, kept].flatten(0, 1) for h in hooks},
            )
        )
    truth, found = (
        [torch.cat([part[group][h] for part in parts]) for group in (0, 1) for h in hooks]
        for parts in (expected, [source[i] for i in range(3, 6)])
    )
    order = torch.cdist(found[0].double(), truth[0].double()).argmin(1)
    assert sorted(order.tolist()) == list(range(3 * 2 * len(kept)))
    assert order.tolist() != sorted(order.tolist())
    for rows, wanted in zip(found, truth, strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(rows, wanted[order], rtol=1e-4, atol=1e-5)


def test_concatenated_batches_are_the_first_ones_and_then_the_rest_of_the_second_ones() -> None:
    batches = ConcatenatedBatches("ab", "vwxyz")
    assert len(batches) == 5
    assert [batches[i] for i in (4, 0, 1, 2, 3)] == ["z", "a", "b", "x", "y"]


def test_the_local_step_only_runs_the_prefix() -> None:
    subject, calls = make_gpt2(), [0, 0, 0]

    def count_calls(k: int) -> None:
        for part in ("attn", "mlp"):
            subject.model.get_submodule(f"transformer.h.{k}.{part}").register_forward_hook(
                lambda *_: calls.__setitem__(k, calls[k] + 1)
            )

    for k in range(3):
        count_calls(k)
    tokens = draw_token_batches(subject, n=4)
    source = ShuffledActivations(
        tokens, subject=subject, hooks=[HOOK], gradients=None, group=2, seed=0, skip_positions=()
    )
    module = make_module("local", subject)
    for i in range(4):
        module.training_step(source[i], i).backward()
    assert calls == [2 * 4, 0, 0]  # attention and MLP of block 0, once per token batch
    make_module("e2e", subject).training_step(tokens[0], 0).backward()
    assert calls == [2 * 5, 2 * 2, 2 * 2], "control: an end-to-end loss runs the suffix, and the counter sees it"
