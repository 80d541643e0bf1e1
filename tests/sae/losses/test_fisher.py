"""The Fisher surrogate: its formula, and that it becomes the KL as the error shrinks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.sae.losses.fisher import fisher_surrogate
from crux.sae.losses.label import label_loss
from crux.subjects.subject import Subject
from tests.support.small_runs import make_gpt2

G = torch.tensor([[[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
DELTA = torch.tensor([[[1.0, 1.0], [4.0, 1.0], [1.0, -2.0]], [[2.0, 5.0], [-1.0, 9.0], [9.0, 0.0]]])
# g·δ of the tokens of the two sequences: 3, −1, 1 and 2, −1, 0
WEIGHT = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("block_diagonal", "weight", "value"),
    [
        (False, None, (3**2 / 6 + 1**2 / 6) / 2),
        (False, WEIGHT, (2**2 / 4 + 1**2 / 4) / 2),
        (True, None, (9 + 1 + 1 + 4 + 1 + 0) / 12),
        (True, WEIGHT, (9 + 1 + 1 + 0) / 8),
    ],
)
def test_by_hand(block_diagonal: bool, weight: Tensor | None, value: float) -> None:
    assert fisher_surrogate(G, DELTA, block_diagonal=block_diagonal, weight=weight).item() == pytest.approx(value)


def test_sequences_are_averaged_after_division_by_their_tokens() -> None:
    weight = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert fisher_surrogate(G, DELTA, block_diagonal=False, weight=weight).item() == pytest.approx((9 / 2 + 1 / 6) / 2)


@pytest.mark.parametrize("block_diagonal", [False, True])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_the_gradient_by_hand_with_none_through_g(block_diagonal: bool, weight: Tensor | None) -> None:
    """∂/∂δ_t is w_t g_t · (Σ w g·δ)/T for a sequence; if block-diagonal, it is w_t g_t (g_t·δ_t) per token."""
    g, delta = G.clone().requires_grad_(), DELTA.clone().requires_grad_()
    fisher_surrogate(g, delta, block_diagonal=block_diagonal, weight=weight).backward()
    w = torch.ones(2, 3) if weight is None else weight
    change = (G * DELTA).sum(-1) * w
    slope = change / w.sum() if block_diagonal else change.sum(1, keepdim=True) / w.sum(1, keepdim=True) / len(G)
    torch.testing.assert_close(delta.grad, (slope * w)[..., None] * G)
    assert g.grad is None


def test_low_precision_is_summed_in_float32() -> None:
    g, delta = torch.full((1, 4096, 2), 0.01, dtype=torch.bfloat16), torch.full((1, 4096, 2), 0.01)
    found = fisher_surrogate(g, delta, block_diagonal=False, weight=None)
    assert found.dtype == torch.float32
    want = 0.5 * (4096 * 2 * float(g[0, 0, 0]) * 0.01) ** 2 / 4096
    assert found.item() == pytest.approx(want, rel=1e-5)


GROUPS, DRAWS, SHRINKING = 128, 64, (1.0, 0.3, 0.1, 0.03)


def _log_probabilities(subject: Subject, final: Tensor) -> Tensor:
    return F.linear(final, subject.unembed.W_U, subject.unembed.b_U).log_softmax(-1)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"])
def test_the_surrogate_approaches_the_kl_as_the_error_shrinks_and_block_diagonal_does_not(hook: str) -> None:
    """Average over many draws of labels, for an error that is the same at all positions; the tolerance is the standard error."""
    subject = make_gpt2().to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, subject.d_vocab, (1, 12), generator=generator)
    many, (W_U, b_U, softcap) = tokens.expand(GROUPS * DRAWS, -1), subject.unembed

    def loss(h: Tensor) -> Tensor:
        return label_loss(h, W_U, b_U=b_U, softcap=softcap, tokens=many, target="sampled", generator=generator)

    gradient = subject.clean_with_gradients(many, gradient_hooks=[hook], loss=loss)[1][hook]
    clean = subject.clean(tokens, capture=[hook])
    x = clean.activations[hook]
    delta = 0.5 * x.std() * torch.randn(x.shape[-1], generator=generator, dtype=x.dtype).expand_as(x)
    kl = []
    for scale in SHRINKING:
        spliced = subject.spliced(clean, {hook: lambda x, scale=scale: x + scale * delta}).final
        assert clean.final is not None
        log_p, log_q = (_log_probabilities(subject, final) for final in (clean.final, spliced))
        kl.append(F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean())

    for block_diagonal in (False, True):
        groups = [
            [
                fisher_surrogate(g, (s * delta).expand_as(g), block_diagonal=block_diagonal, weight=None)
                for s in SHRINKING
            ]
            for g in gradient.split(DRAWS)
        ]
        ratios = torch.tensor(groups) / torch.tensor(kl)  # groups × scales
        mean, error = ratios.mean(0), ratios.std(0) / GROUPS**0.5
        print(hook, f"block_diagonal={block_diagonal}", [f"{r:.3f}" for r in mean], f"± {error[-1]:.3f}")
        if block_diagonal:
            assert abs(mean[-1] - 1) > 10 * error[-1]
        else:
            assert abs(mean[-1] - 1) < 3 * error[-1]
            assert abs(mean[0] - 1) > 3 * abs(mean[-1] - 1), "at first the error is not small"
