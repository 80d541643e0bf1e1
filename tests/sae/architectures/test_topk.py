import pytest
import torch

from crux.config.errors import UserError
from crux.sae.architectures.topk import TopKSAE, keep_largest
from tests.support.architectures import draw_normal, make_arguments


def test_the_selection_by_hand() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-3.0, -1.0, 0.5, -2.0]], requires_grad=True)
    kept = keep_largest(pre, 2, score=pre)
    assert torch.equal(kept, torch.tensor([[3.0, 0, 2, 0], [0, 0, 0.5, 0]]))
    (kept * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert pre.grad is not None
    assert torch.equal(pre.grad, torch.tensor([[1.0, 0, 3, 0], [0, 0, 3, 0]]))  # only through the kept values


def test_the_score_selects_and_values_are_kept() -> None:
    pre = torch.tensor([[3.0, 1.0, 2.0]])
    assert torch.equal(keep_largest(pre, 1, score=torch.tensor([[0.0, 9.0, 1.0]])), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("k", [1, 5, 24])
def test_exactly_k_of_positive_pre_activations(k: int) -> None:
    sae = TopKSAE(**make_arguments(), k=k)
    with torch.no_grad():
        sae.b_enc.add_(100.0)
    assert ((sae.encode(draw_normal(50, 8)).c != 0).sum(-1) == k).all()
    with torch.no_grad():
        sae.b_enc.sub_(100.0)
    codes = sae.encode(draw_normal(50, 8))
    assert torch.equal((codes.c != 0).sum(-1), (codes.pre > 0).sum(-1).clamp_max(k))  # at most k after ReLU


def test_k_values_are_kept_if_all_are_equal() -> None:
    assert (keep_largest(torch.ones(3, 10), 4, score=torch.ones(3, 10)).sum(-1) == 4).all()


@pytest.mark.parametrize("k", [0, -1, 25])
def test_a_k_below_one_or_above_the_number_of_latents_is_rejected(k: int) -> None:
    with pytest.raises(UserError, match=f"between 1 and the 24 latents of the dictionary, not be {k}"):
        TopKSAE(**make_arguments(), k=k)
