"""Neither a training step nor the evaluation holds a tensor of tokens × vocab elements."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crux.sae.architectures.site import Site
from crux.sae.evaluation.evaluate_sae import evaluate_sae
from crux.subjects.subject import Subject
from tests.support.small_runs import HOOK, Loss, draw_token_batches, make_gpt2, make_module, make_sae

BATCH, T, V = 4, 32, 4096
TOKENS = BATCH * T  # logits: 524,288 elements; W_U has 65,536, a chunk's logits 131,072


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.shape, self.operation = 0, torch.Size(), ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.numel() > self.numel:
                self.numel, self.shape, self.operation = leaf.numel(), leaf.shape, str(func)
        return out


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_gpt2(d_vocab=V, n_ctx=T)


def test_a_full_softmax_is_detected(subject: Subject) -> None:
    tokens = draw_token_batches(subject, n=1, batch=BATCH, pos=T)[0]
    with LargestTensor() as largest:
        final = subject.clean(tokens, capture=[]).final
        assert final is not None
        (final @ subject.unembed.W_U.T).log_softmax(-1)
    assert largest.numel == TOKENS * V


@pytest.mark.parametrize("loss", ["e2e", "e2e_ds", "fisher", "kl_finetune"])
@pytest.mark.parametrize("skip_positions", [[], [0]])
def test_a_training_step_never_holds_all_logits(subject: Subject, loss: Loss, skip_positions: list[int]) -> None:
    module = make_module(loss, subject, skip_positions=skip_positions)
    tokens = draw_token_batches(subject, n=1, batch=BATCH, pos=T)[0]
    with LargestTensor() as largest:
        module.training_step(tokens, 0).backward()
    assert V in largest.shape, "control: the largest tensor should be the logits of a chunk"
    assert largest.numel <= TOKENS * V // 4, f"{largest.operation} returned {tuple(largest.shape)}"


@pytest.mark.parametrize("loss", ["e2e", "e2e_ds", "fisher", "kl_finetune"])
def test_many_saes_at_once_hold_no_more_logits_than_one(subject: Subject, loss: Loss) -> None:
    sites = [Site(HOOK, HOOK, make_sae(subject)) for _ in range(4)]
    module = make_module(loss, subject, sites=sites, sparsity=[0.1] * 4, runs=("a", "b", "c", "d"))
    tokens = draw_token_batches(subject, n=1, batch=BATCH, pos=T)[0]
    with LargestTensor() as largest:
        module.training_step(tokens, 0).backward()
    assert V in largest.shape
    assert largest.numel <= TOKENS * V // 4, f"{largest.operation} returned {tuple(largest.shape)}"


@pytest.mark.parametrize("ablations", [True, False])
def test_the_evaluation_never_holds_all_logits(subject: Subject, ablations: bool) -> None:
    batches = draw_token_batches(subject, n=2, batch=BATCH, pos=T)
    with LargestTensor() as largest:
        evaluate_sae(
            subject,
            make_sae(subject),
            hook=HOOK,
            batches=batches,
            mean_activation=torch.zeros(subject.d_model),
            ablations=ablations,
        )
    assert V in largest.shape
    assert largest.numel <= TOKENS * V // 4, f"{largest.operation} returned {tuple(largest.shape)}"
