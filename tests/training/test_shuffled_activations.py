"""The local variant's food: activations shuffled across sequences, from the prefix alone, in any order of access."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import HOOK, gpt2, module_for, token_batches
from torch import Tensor

from crux.subjects.subject import Subject
from crux.training.data import ShuffledActivations

N_BATCHES, GROUP = 7, 3  # the last group is a short one


@cache
def network() -> Subject:
    return gpt2()


def shuffled(*, seed: int = 0, group: int = GROUP, skip_positions: tuple[int, ...] = ()) -> ShuffledActivations:
    return ShuffledActivations(
        token_batches(network(), n=N_BATCHES),
        subject=network(),
        hook=HOOK,
        group=group,
        seed=seed,
        skip_positions=skip_positions,
    )


def activations(first: int, last: int) -> Tensor:
    """batch × pos × d of token batches `first` to `last`."""
    tokens = torch.cat(token_batches(network(), n=N_BATCHES)[first:last])
    return network().clean(tokens, capture=[HOOK], final=False).activations[HOOK]


def in_order(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].sort(stable=True).indices]


@pytest.mark.parametrize("group", [(0, 3), (3, 6), (6, 7)])
def test_a_group_is_a_permutation_of_its_activations_across_sequences(group: tuple[int, int]) -> None:
    source = shuffled()
    rows = [source[i] for i in range(*group)]
    clean = activations(*group)
    assert [len(r) for r in rows] == [24] * len(rows)
    torch.testing.assert_close(in_order(torch.cat(rows)), in_order(clean.flatten(0, 1)), rtol=1e-5, atol=1e-6)
    near = torch.cdist(rows[0].double(), clean.flatten(0, 1).double()).argmin(1)
    assert len(set((near // clean.shape[1]).tolist())) > 1, "all rows of a batch come from one sequence"
    assert near.tolist() != sorted(near.tolist())


def test_skipped_positions_are_left_out() -> None:
    source = shuffled(skip_positions=(0, 5))
    rows = torch.cat([source[i] for i in range(GROUP)])
    kept = [p for p in range(12) if p not in (0, 5)]
    expected = activations(0, GROUP)[:, kept].flatten(0, 1)
    assert len(rows) == GROUP * 2 * 10
    torch.testing.assert_close(in_order(rows), in_order(expected), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(0, N_BATCHES - 1), min_size=1, max_size=8), st.integers(0, 3))
def test_batch_i_is_a_pure_function_of_seed_and_i(order: list[int], seed: int) -> None:
    source = shuffled(seed=seed)
    for i in order:
        assert torch.equal(source[i], shuffled(seed=seed)[i])


def test_seeds_and_groups_shuffle_differently() -> None:
    assert not torch.equal(shuffled(seed=0)[0], shuffled(seed=1)[0])
    same_text = [token_batches(network(), n=1)[0]] * 2
    source = ShuffledActivations(same_text, subject=network(), hook=HOOK, group=1, seed=0, skip_positions=())
    first = source[0]
    assert not torch.equal(first, source[1])


def test_the_local_step_runs_the_prefix_alone() -> None:
    subject, calls = gpt2(), [0, 0, 0]
    blocks = subject.model.get_submodule("transformer.h")

    def counting(k: int) -> None:
        for part in ("attn", "mlp"):
            blocks[k].get_submodule(part).register_forward_hook(lambda *_: calls.__setitem__(k, calls[k] + 1))

    for k in range(3):
        counting(k)
    tokens = token_batches(subject, n=4)
    source = ShuffledActivations(tokens, subject=subject, hook=HOOK, group=2, seed=0, skip_positions=())
    module = module_for("local", subject)
    for i in range(4):
        module.training_step(source[i], i).backward()
    assert calls == [2 * 4, 0, 0]  # attention and MLP of block 0, once a token batch
    module_for("e2e", subject).training_step(tokens[0], 0).backward()
    assert calls == [2 * 5, 2 * 2, 2 * 2], "the counter would see a suffix"
