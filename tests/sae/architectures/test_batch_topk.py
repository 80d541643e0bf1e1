import pytest
import torch

from crux.config.errors import UserError
from crux.sae.architectures.batch_topk import BatchTopKSAE, kth_largest
from crux.sae.architectures.jumprelu import JumpReluSAE
from tests.support.architectures import draw_normal, make_arguments


def make_sae(k: int = 4) -> BatchTopKSAE:
    return BatchTopKSAE(**make_arguments(), k=k)


@pytest.mark.parametrize("k", [1, 4, 11])
def test_it_keeps_k_times_tokens_values_of_the_batch(k: int) -> None:
    sae = make_sae(k)
    codes = sae.encode(3 * draw_normal(50, 8))
    fires = codes.c > 0
    assert fires.sum() == k * 50
    assert fires.sum(-1).unique().numel() > 1  # not k of each token
    assert codes.pre[fires].min() > codes.pre[~fires].max()
    assert codes.observed is not None
    assert codes.observed == codes.c[fires].min()
    assert torch.equal(codes.c[fires], codes.pre[fires])


def test_all_values_are_kept_if_fewer_are_positive() -> None:
    codes = make_sae(24).encode(draw_normal(50, 8))
    assert torch.equal(codes.c, codes.pre.relu())
    assert codes.observed == 0


def test_the_kth_largest_value() -> None:
    values = torch.tensor([3.0, 0.0, 5.0, 1.0, 0.0])
    assert [kth_largest(values, k).item() for k in (1, 2, 3, 4, 5)] == [5, 3, 1, 0, 0]
    meta = kth_largest(values.to("meta"), 2)  # the selection on other devices has the same shape
    assert meta.shape == ()
    assert values.topk(3, sorted=False).values.min() == kth_largest(values, 3)


def test_the_threshold_is_a_running_mean() -> None:
    sae = make_sae()
    smallest_kept = []
    batches = [sae.encode(3 * draw_normal(50, 8, seed=seed)) for seed in range(4)]
    for codes in batches:
        assert codes.observed is not None
        smallest_kept.append(codes.observed)
        sae.observe(codes)
    torch.testing.assert_close(sae.threshold, torch.stack(smallest_kept).mean())
    sae.observed_n.fill_(10_000)
    before = sae.threshold.clone()
    sae.observe(batches[-1])
    torch.testing.assert_close(sae.threshold, 0.95 * before + 0.05 * smallest_kept[-1])  # old batches lose weight


def test_the_calibrated_threshold_gives_k_on_fresh_tokens() -> None:
    sae = make_sae()
    for seed in range(30):
        sae.observe(sae.encode(3 * draw_normal(200, 8, seed=seed)))
    fresh = 3 * draw_normal(5000, 8, seed=99)
    l0 = (sae.eval().encode(fresh).c > 0).sum(-1).float().mean().item()
    assert l0 == pytest.approx(4, rel=0.03)
    folded = sae.fold()
    assert isinstance(folded, JumpReluSAE)
    assert folded.threshold.shape == (24,)
    assert (folded.encode(fresh).c > 0).sum(-1).float().mean().item() == pytest.approx(l0, rel=1e-3)


def test_it_folds_to_a_strict_jumprelu() -> None:
    sae = make_sae().eval()
    x = draw_normal(1, 8)
    pre = sae.encode(x).pre
    sae.threshold.copy_(pre.max())
    assert not sae.encode(x).c.any()  # not above
    sae.threshold.copy_(pre.max() * 0.999)
    assert (sae.encode(x).c > 0).sum() == 1


def test_without_training_it_folds_to_a_relu() -> None:
    x = draw_normal(20, 8)
    codes = make_sae().fold().encode(x)
    torch.testing.assert_close(codes.c, codes.pre.relu())


def test_only_kept_values_have_a_gradient() -> None:
    sae = make_sae()
    codes = sae.encode(3 * draw_normal(50, 8))
    (grad,) = torch.autograd.grad(codes.c.sum(), codes.pre)
    assert torch.equal(grad, (codes.c > 0).float())


def test_k_larger_than_the_dictionary_is_rejected() -> None:
    with pytest.raises(UserError, match="between 1 and the 24 latents"):
        make_sae(25)
