"""The chunked KL against F.kl_div on full logits, in value and gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crux.sae.losses import readout
from crux.sae.losses.kl import mean_kl, token_kl
from crux.sae.losses.readout import chunked_cross_entropy, token_cross_entropy

D, V = 5, 13


def draw_case(n_tokens: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return spliced and clean final hidden states, W_U and b_U."""
    generator = torch.Generator().manual_seed(n_tokens)
    h, g = (3 * torch.randn(n_tokens, D, generator=generator).to(dtype) for _ in range(2))
    W_U = torch.randn(V, D, generator=generator).to(dtype)
    return h.requires_grad_(), g, W_U, torch.randn(V, generator=generator).to(dtype)


def compute_plainly(
    h: Tensor, g: Tensor, W_U: Tensor, b_U: Tensor | None, softcap: float | None, weight: Tensor | None
) -> Tensor:
    """Compute the KL from full logits in float64, with the gradient of autograd."""

    def log_probabilities(x: Tensor) -> Tensor:
        u = F.linear(x.double(), W_U.double(), None if b_U is None else b_U.double())
        return (u if softcap is None else softcap * torch.tanh(u / softcap)).log_softmax(-1)

    per_token = F.kl_div(log_probabilities(h), log_probabilities(g), log_target=True, reduction="none").sum(-1)
    return per_token.mean() if weight is None else (per_token * weight).sum() / weight.sum()


@pytest.mark.parametrize("chunk_elements", [V, 3 * V, 2**21])  # chunks of 1 and of 3 tokens; four chunks
@pytest.mark.parametrize("n_tokens", [1, 2, 7, 12])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch,
    chunk_elements: int,
    n_tokens: int,
    softcap: float | None,
    weighted: bool,
    bias: bool,
) -> None:
    monkeypatch.setitem(readout.CHUNK_ELEMENTS, "cpu", chunk_elements)
    h, g, W_U, b_U = draw_case(n_tokens)
    weight = (torch.arange(n_tokens) % 3 != 1).float() if weighted else None
    arguments = (b_U if bias else None, softcap, weight)
    found = mean_kl(h, g, W_U, b_U=arguments[0], softcap=softcap, weight=weight)
    (3 * found).backward()  # an outer coefficient reaches the gradient
    gradient, h.grad = h.grad, None
    truth = compute_plainly(h, g, W_U, *arguments)
    (3 * truth).backward()
    torch.testing.assert_close(found, truth.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, h.grad, rtol=1e-4, atol=1e-6)
    if weight is not None and gradient is not None:
        assert (gradient[weight == 0] == 0).all()


def test_direction_is_clean_to_spliced() -> None:
    """p = (0.9, 0.1), q = (½, ½): KL(p‖q) = 0.3681 nats, KL(q‖p) = 0.5108."""
    W_U, clean = torch.eye(2), torch.tensor([[math.log(9), 0.0]])
    found = mean_kl(torch.zeros(1, 2), clean, W_U, b_U=None, softcap=None, weight=None)
    assert found.item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert found.item() == pytest.approx(0.3681, abs=1e-4)


def test_unchanged_states_have_zero_kl_and_zero_gradient() -> None:
    h, _, W_U, b_U = draw_case(9)
    found = mean_kl(h, h.detach(), W_U, b_U=b_U, softcap=30.0, weight=None)
    found.backward()
    assert found.item() == 0
    assert h.grad is not None
    torch.testing.assert_close(h.grad, torch.zeros_like(h), rtol=0, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 30))
def test_kl_is_never_negative(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_p, log_q = ((scale * torch.randn(4, 20, generator=generator)).log_softmax(-1) for _ in range(2))
    assert (token_kl(log_p, log_q) >= -1e-6).all()


def test_only_the_spliced_states_receive_a_gradient() -> None:
    h, g, W_U, b_U = draw_case(6)
    for tensor in (g, W_U, b_U):
        tensor.requires_grad_()
    mean_kl(h, g, W_U, b_U=b_U, softcap=None, weight=None).backward()
    assert h.grad is not None
    assert g.grad is None
    assert W_U.grad is None
    assert b_U.grad is None


def test_bfloat16_states_keep_a_float32_loss() -> None:
    h, g, W_U, b_U = draw_case(8)
    low = [t.detach().bfloat16() for t in (h, g, W_U, b_U)]
    low[0].requires_grad_()
    found = mean_kl(low[0], low[1], low[2], b_U=low[3], softcap=None, weight=None)
    found.backward()
    assert found.dtype == torch.float32
    assert low[0].grad is not None
    assert low[0].grad.dtype == torch.bfloat16
    truth = compute_plainly(h, g, W_U, b_U, None, None)
    assert found.item() == pytest.approx(truth.item(), rel=0.05)


def test_cross_entropy_by_hand() -> None:
    log_q = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    found = token_cross_entropy(log_q, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([math.log(4), math.log(2)]))


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_cross_entropy_in_chunks_is_that_of_full_logits(softcap: float | None) -> None:
    h, _, W_U, b_U = draw_case(7)
    u = F.linear(h, W_U, b_U)
    labels = torch.arange(7)
    expected = F.cross_entropy(u if softcap is None else softcap * torch.tanh(u / softcap), labels, reduction="none")
    found = chunked_cross_entropy(h, W_U, b_U=b_U, softcap=softcap, labels=labels)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


@pytest.mark.parametrize(("n_tokens", "d_vocab"), [(1, 10), (4, 10), (5, 10), (1000, 50_257), (4097, 2**21)])
def test_chunks_cover_every_token_once_and_never_all_at_once(n_tokens: int, d_vocab: int) -> None:
    parts = list(readout.token_chunks(n_tokens, d_vocab, torch.device("cpu")))
    covered = [t for part in parts for t in range(n_tokens)[part]]
    assert covered == list(range(n_tokens))
    longest = max(len(range(n_tokens)[part]) for part in parts)
    assert longest <= -(-n_tokens // 4)
    assert longest == 1 or longest * d_vocab <= readout.CHUNK_ELEMENTS["cpu"]


def test_logits_are_capped() -> None:
    u = readout.logits(torch.tensor([[2.0]]), torch.tensor([[1.0], [-3.0]]), b_U=torch.tensor([0.5, 0.0]), softcap=2.0)
    torch.testing.assert_close(u, torch.tensor([[2 * math.tanh(1.25), 2 * math.tanh(-3.0)]]))
