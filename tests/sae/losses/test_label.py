"""The label losses against their plain formula, in value and gradient, and the labels' distribution."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from crux.sae.losses import label, readout
from crux.sae.losses.label import LabelTarget, draw_labels, label_loss
from tests.support.recorded_operators import OperatorRecorder

BATCH, T, D, V = 3, 5, 4, 11
TARGETS: list[LabelTarget] = list(get_args(LabelTarget))


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return h, W_U, b_U and tokens."""
    generator = torch.Generator().manual_seed(1)
    h, W_U, b_U = (torch.randn(*shape, generator=generator) for shape in [(BATCH, T, D), (V, D), (V,)])
    return h.requires_grad_(), W_U, b_U, torch.randint(0, V, (BATCH, T), generator=generator)


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def compute_plainly(
    h: Tensor, W_U: Tensor, b_U: Tensor | None, softcap: float | None, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the logit of every label, from full logits."""
    u = F.linear(h.double(), W_U.double(), None if b_U is None else b_U.double())
    z = u if softcap is None else softcap * torch.tanh(u / softcap)
    return F.cross_entropy(z.mT, labels, reduction="none"), z.gather(-1, labels[..., None])[..., 0]


def compute_loss_plainly(
    target: LabelTarget,
    h: Tensor,
    W_U: Tensor,
    b_U: Tensor | None,
    softcap: float | None,
    tokens: Tensor,
    drawn: Tensor,
) -> Tensor:
    """Return the summed label loss, from full logits; `drawn` are the labels of `sampled`."""
    if target == "data":
        return compute_plainly(h[:, :-1], W_U, b_U, softcap, tokens[:, 1:])[0].sum()
    if target == "sampled":
        return compute_plainly(h, W_U, b_U, softcap, drawn)[0].sum()
    top = F.linear(h, W_U, b_U).argmax(-1)
    return -compute_plainly(h, W_U, b_U, softcap, top)[1].sum()


@pytest.mark.parametrize("chunk_elements", [V, 3 * V, 2**21])  # chunks of 1 and of 3 tokens; four chunks
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[Tensor, Tensor, Tensor, Tensor],
    target: LabelTarget,
    bias: bool,
    softcap: float | None,
    chunk_elements: int,
) -> None:
    monkeypatch.setitem(readout.CHUNK_ELEMENTS, "cpu", chunk_elements)
    labels: list[Tensor] = []

    def draw_and_record(q: Tensor, generator: torch.Generator | None) -> Tensor:
        labels.append(draw_labels(q, generator))
        return labels[-1]

    monkeypatch.setattr(label, "draw_labels", draw_and_record)
    h, W_U, b_U, tokens = case
    b_U = b_U if bias else None
    found = label_loss(h, W_U, b_U=b_U, softcap=softcap, tokens=tokens, target=target, generator=make_generator())
    (3 * found).backward()  # an outer coefficient reaches the gradient
    gradient, h.grad = h.grad, None
    drawn = torch.cat(labels).view(BATCH, T) if labels else tokens
    want = compute_loss_plainly(target, h, W_U, b_U, softcap, tokens, drawn)
    (3 * want).backward()
    assert len(labels) > 0 or target != "sampled"
    torch.testing.assert_close(found, want.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, h.grad, rtol=1e-4, atol=1e-6)


def test_by_hand() -> None:
    """Logits (0, log 3) at both positions: q = (¼, ¾); W_U is the identity, so gradients are those of the logits."""
    h = torch.tensor([[[0.0, 1.0986123], [0.0, 1.0986123]]], requires_grad=True)
    arguments = {"b_U": None, "softcap": None, "tokens": torch.tensor([[1, 0]]), "generator": make_generator()}
    cases: list[tuple[LabelTarget, float, list[list[float]]]] = [
        ("data", 1.3862944, [[0.25 - 1, 0.75], [0.0, 0.0]]),  # −log ¼; the last token has no label
        ("top_logit", -2 * 1.0986123, [[0.0, -1.0], [0.0, -1.0]]),
    ]
    for target, value, gradient in cases:
        found = label_loss(h, torch.eye(2), target=target, **arguments)
        (found_gradient,) = torch.autograd.grad(found, h)
        assert found.item() == pytest.approx(value, rel=1e-6)
        torch.testing.assert_close(found_gradient, torch.tensor([gradient]))


def test_labels_have_the_softmax_frequencies() -> None:
    n = 200_000
    q = torch.tensor([0.5, 0.3, 0.15, 0.05, 1e-4, 0.0]).div(1.0001)
    counts = draw_labels(q.expand(n, -1), make_generator()).bincount(minlength=6)
    assert counts[5] == 0
    expected = n * q[:5].double()
    chi_squared = ((counts[:5] - expected).square() / expected).sum()
    assert chi_squared < 23.5  # four degrees of freedom: p = 1e-4


def test_labels_are_drawn_at_the_clean_logits(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Over many draws the mean gradient q − 1_y vanishes and the mean loss is the entropy of q."""
    n, softcap = 40_000, 2.0
    h, W_U, b_U, tokens = (x[:1, :1] if x.ndim == 3 else x for x in case)
    many = h.detach().expand(n, 1, D).clone().requires_grad_()
    tokens = tokens[:1, :1].expand(n, 1)
    found = label_loss(many, W_U, b_U=b_U, softcap=softcap, tokens=tokens, target="sampled", generator=make_generator())
    found.backward()
    assert many.grad is not None
    spread = many.grad.std(0) / n**0.5
    assert (many.grad.mean(0).abs() < 4.5 * spread).all()
    log_q = readout.logits(h[0].detach(), W_U, b_U=b_U, softcap=softcap).log_softmax(-1).double()
    entropy, variance = -(log_q.exp() * log_q).sum(), (log_q.exp() * log_q.square()).sum()
    assert (found / n - entropy).abs() < 4.5 * ((variance - entropy**2) / n) ** 0.5


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_depends_on_its_own_inputs(
    case: tuple[Tensor, Tensor, Tensor, Tensor], target: LabelTarget
) -> None:
    """`sampled` depends on the state of the generator and not on the text; `data` depends on the text."""
    h, W_U, b_U, tokens = case

    def gradient(generator: torch.Generator, tokens: Tensor) -> Tensor:
        found = label_loss(h, W_U, b_U=b_U, softcap=None, tokens=tokens, target=target, generator=generator)
        return torch.autograd.grad(found, h)[0]

    generator = make_generator()
    state = generator.get_state()
    first = gradient(generator, tokens)
    assert torch.equal(generator.get_state(), state) == (target != "sampled")
    assert torch.equal(gradient(generator, tokens), first) == (target != "sampled")
    torch.manual_seed(77)  # the global generator is not used
    assert torch.equal(gradient(generator.set_state(state), tokens), first)
    assert torch.equal(gradient(make_generator(), (tokens + 1) % V), first) == (target != "data")


def test_only_the_states_receive_a_gradient(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    h, W_U, b_U, tokens = case
    for target in TARGETS:
        W_U.requires_grad_()
        b_U.requires_grad_()
        label_loss(h, W_U, b_U=b_U, softcap=None, tokens=tokens, target=target, generator=make_generator()).backward()
    assert h.grad is not None
    assert W_U.grad is None
    assert b_U.grad is None


def test_one_token_has_nothing_to_predict(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    h, W_U, b_U, tokens = case
    one = h.detach()[:, :1].clone().requires_grad_()
    found = label_loss(one, W_U, b_U=b_U, softcap=None, tokens=tokens[:, :1], target="data", generator=None)
    found.backward()
    assert found.item() == 0
    assert one.grad is not None
    assert (one.grad == 0).all()


def test_bfloat16_states_keep_a_float32_loss(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    h, W_U, b_U, tokens = case
    low = h.detach().bfloat16().requires_grad_()
    for target in TARGETS:
        arguments = {"softcap": 2.0, "tokens": tokens, "target": target}
        found = label_loss(low, W_U.bfloat16(), b_U=b_U.bfloat16(), generator=make_generator(), **arguments)
        found.backward()
        assert found.dtype == torch.float32
        assert low.grad is not None
        assert low.grad.dtype == torch.bfloat16
        if target != "sampled":
            want = label_loss(h, W_U, b_U=b_U, generator=make_generator(), **arguments)
            assert found.item() == pytest.approx(want.item(), rel=0.05)


@pytest.mark.parametrize(("target", "products"), [("data", 2), ("sampled", 2), ("top_logit", 1)])
def test_the_number_of_products(target: LabelTarget, products: int) -> None:
    """A prediction costs two d·V products, without a tokens × vocab tensor or a host sync."""
    batch, pos, d, vocab = 2, 32, 8, 1000
    generator = make_generator()
    h = torch.randn(batch, pos, d, generator=generator).requires_grad_()
    W_U, tokens = torch.randn(vocab, d, generator=generator), torch.randint(0, vocab, (batch, pos), generator=generator)

    def step() -> None:
        label_loss(h, W_U, b_U=None, softcap=5.0, tokens=tokens, target=target, generator=generator).backward()

    with FlopCounterMode(display=False) as counter, OperatorRecorder() as watch:
        step()
    predictions = batch * (pos - 1 if target == "data" else pos)
    assert counter.get_total_flops() == products * 2 * predictions * d * vocab
    assert vocab < watch.largest <= batch * pos * vocab // 4
    assert not [op for op in watch.operators if "local_scalar" in op or "item" in op or "nonzero" in op]


@pytest.mark.parametrize("target", TARGETS)
def test_the_value_without_a_gradient(case: tuple[Tensor, Tensor, Tensor, Tensor], target: LabelTarget) -> None:
    h, W_U, b_U, tokens = case
    with_gradient, without = (
        label_loss(x, W_U, b_U=b_U, softcap=None, tokens=tokens, target=target, generator=make_generator())
        for x in (h, h.detach())
    )
    assert with_gradient.requires_grad
    assert not without.requires_grad
    torch.testing.assert_close(without, with_gradient.detach(), rtol=0, atol=0)


def test_sampling_needs_a_generator(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    h, W_U, b_U, tokens = case
    with pytest.raises(AssertionError, match="generator"):
        label_loss(h, W_U, b_U=b_U, softcap=None, tokens=tokens, target="sampled", generator=None)
