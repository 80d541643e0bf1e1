from collections.abc import Sequence

import pytest
import torch

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.jumprelu import JumpReluSAE
from crux.sae.architectures.matryoshka import MatryoshkaSAE
from tests.support.architectures import draw_normal, make_arguments


def make_sae(prefixes: Sequence[float] = (0.25, 0.5), coefficient: float = 1.0) -> MatryoshkaSAE:
    return MatryoshkaSAE(**make_arguments(), k=4, prefixes=prefixes, prefix_coefficient=coefficient)


def test_auxiliary_by_hand() -> None:
    """d_model is 2, and of four latents the prefixes have one and two; only the loss itself covers the third and fourth."""
    sae = MatryoshkaSAE(**make_arguments(d_model=2, n_latents=4), k=1, prefixes=[0.25, 0.5], prefix_coefficient=0.5)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [1.0, 0.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, -1.0]))
    c = torch.tensor([[2.0, 3.0, 9.0, 9.0]])
    target = torch.tensor([[0.0, 0.0]])
    # x̂ of the prefixes: (3, −1) and (3, 2); squares 9 + 1 and 9 + 4
    found = sae.auxiliary(Codes(c, c), target, weight=None)
    assert found.item() == pytest.approx(0.5 * (10 / 2 + 13 / 2))


@pytest.mark.parametrize("weight", [None, torch.arange(30).ge(5).float()])
def test_the_auxiliary_term_is_the_sum_over_prefixes(weight: torch.Tensor | None) -> None:
    sae = make_sae(coefficient=0.7)
    x = 3 * draw_normal(30, 8)
    codes = sae.encode(x)
    wanted = torch.zeros(())
    for n in (6, 12):
        error = codes.c[:, :n] @ sae.dictionary()[:n] + sae.b_dec - x
        wanted = wanted + 0.7 * (error if weight is None else error[weight > 0]).square().mean()
    found = sae.auxiliary(codes, x, weight=weight)
    torch.testing.assert_close(found, wanted)
    for parameter in (sae.W_dec, sae.W_enc, sae.b_dec):
        plain, fast = (torch.autograd.grad(v, parameter, retain_graph=True)[0] for v in (wanted, found))
        torch.testing.assert_close(fast, plain)
    (by_decoder,) = torch.autograd.grad(found, sae.W_dec)
    assert by_decoder[:12].any()
    assert not by_decoder[12:].any()  # in no prefix


def test_it_is_a_batch_topk() -> None:
    sae = make_sae()
    codes = sae.encode(3 * draw_normal(50, 8))
    assert (codes.c > 0).sum() == 200
    sae.observe(codes)
    folded = sae.fold()
    assert type(folded) is JumpReluSAE
    torch.testing.assert_close(folded.threshold, sae.threshold.expand(24))


@pytest.mark.parametrize("prefixes", [(), (0.5, 0.25), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (-0.5, 0.5), (0.001,)])
def test_invalid_prefixes_are_rejected(prefixes: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="increasing shares of the 24 latents"):
        make_sae(prefixes)


def test_a_negative_coefficient_is_rejected() -> None:
    with pytest.raises(UserError, match="must not be negative, but is"):
        make_sae(coefficient=-1.0)
