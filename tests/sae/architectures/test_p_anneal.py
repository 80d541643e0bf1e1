import pytest
import torch

from crux.config.errors import UserError
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.p_anneal import EPSILON, PAnnealSAE, lp_penalty
from crux.sae.architectures.relu import ReluSAE
from tests.support.architectures import draw_normal, make_arguments


def make_sae(p_end: float = 0.2, p_start: float = 0.2, p_stop: float = 1.0, p_updates: int = 4) -> PAnnealSAE:
    return PAnnealSAE(**make_arguments(), p_end=p_end, p_start=p_start, p_stop=p_stop, p_updates=p_updates)


def find_stage(sae: PAnnealSAE, progress: float) -> int:
    sae.advance(progress)
    return int(sae.stage)


def test_lp_by_hand() -> None:
    c = torch.tensor([[0.0, 4.0, 9.0]])
    penalty = lp_penalty(c, 0.5).sum().item()
    assert penalty == pytest.approx(4.001**0.5 + 9.001**0.5 - 2 * 0.001**0.5, rel=1e-5)
    assert penalty == pytest.approx(2 + 3, rel=0.02)  # Σ √c, apart from ε
    assert lp_penalty(c, 1.0).sum().item() == 13
    assert not lp_penalty(torch.zeros(1, 5), 0.3).any()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9, 1.0])
def test_the_gradient_stays_bounded(p: float) -> None:
    c = torch.tensor([[0.0, 1e-6, 1e-3, 1.0, 50.0]], requires_grad=True)
    lp_penalty(c, p).sum().backward()
    assert c.grad is not None
    torch.testing.assert_close(c.grad, p * (c.detach() + EPSILON) ** (p - 1))
    assert c.grad.max() <= p * EPSILON ** (p - 1) * 1.0001


def test_the_stages_of_p() -> None:
    sae = make_sae()
    assert [find_stage(sae, progress) for progress in (0.0, 0.19, 0.21, 0.39, 0.41, 0.61, 0.79, 0.81, 0.99, 1.0)] == [
        *(0, 0, 1, 1, 2, 3, 3, 4, 4, 4)
    ]
    assert [sae.p(s) for s in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_the_penalty_is_initially_that_of_relu() -> None:
    sae = make_sae()
    plain = ReluSAE(**make_arguments())
    codes = sae.encode(3 * draw_normal(30, 8))
    assert torch.equal(codes.c, plain.encode(3 * draw_normal(30, 8)).c)
    torch.testing.assert_close(sae.penalty(codes, weight=None), plain.penalty(codes, weight=None))


def test_the_penalty_does_not_jump_between_stages() -> None:
    """Check one change of stage by hand, with ten equal batches before it and the same batch after it."""
    sae = make_sae()
    codes = sae.encode(3 * draw_normal(30, 8))
    penalties = []
    for progress in (0.1, 0.3, 0.5, 0.7, 0.9):
        sae.advance(progress)
        penalties.append(sae.penalty(codes, weight=None).item())
        for _ in range(10):
            sae.observe(codes)
    assert penalties == pytest.approx([penalties[0]] * 5, rel=1e-4)
    wanted = lp_penalty(codes.c, 1.0).mean() / lp_penalty(codes.c, 0.2).mean()
    assert sae.scale.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert sae.scale.item() != pytest.approx(1, rel=0.1)


def test_the_means_cover_about_the_last_ten_batches() -> None:
    sae = make_sae()
    sae.advance(0.0)
    early, late = (Codes(c, c) for c in (torch.full((1, 24), 4.0), torch.full((1, 24), 0.5)))
    for codes in (early, late):
        for _ in range(60):
            sae.observe(codes)
    torch.testing.assert_close(
        sae.sums, torch.stack([lp_penalty(late.c, p).sum() for p in (1.0, 0.8)]), rtol=0.03, atol=0
    )
    sae.observed_n.zero_()
    sae.observe(early)
    sae.observe(late)
    wanted = torch.stack([(lp_penalty(early.c, p) + lp_penalty(late.c, p)).sum() / 2 for p in (1.0, 0.8)])
    torch.testing.assert_close(sae.sums, wanted)  # with fewer than ten batches, the plain mean of all


def test_the_scale_is_constant_within_a_stage() -> None:
    sae = make_sae()
    for i, progress in enumerate((0.21, 0.25, 0.3, 0.35)):
        sae.advance(progress)
        sae.observe(sae.encode(3 * draw_normal(30, 8, seed=i)))
        assert sae.scale.item() == 1  # there was no batch before the first change
    sae.advance(0.41)
    assert sae.scale.item() != 1
    assert sae.observed_n.item() == 0


def test_resuming_at_any_step_changes_nothing() -> None:
    """A run that is interrupted at any step, also right before a change of stage, has the same scale bit for bit."""
    whole, resumed = make_sae(), make_sae()
    steps = [i / 40 for i in range(40)]
    for i, progress in enumerate(steps):
        for sae in (whole, resumed):
            sae.advance(progress)
            sae.observe(sae.encode(3 * draw_normal(20, 8, seed=i)))
        state = resumed.state_dict()
        resumed = make_sae()
        resumed.load_state_dict(state)
        assert torch.equal(whole.scale, resumed.scale)
        assert torch.equal(whole.sums, resumed.sums)
    assert whole.stage.item() == 4
    assert whole.scale.item() != 1


def test_it_folds_to_a_plain_relu() -> None:
    assert type(make_sae().fold()) is ReluSAE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p_end": 0.0}, "p_end must lie between 0 and 1, not be 0.0"),
        ({"p_end": 1.0}, "p_end must lie between"),
        ({"p_start": 1.0}, "p_start must be less than p_stop, both between 0 and 1, not 1.0 and 1.0"),
        ({"p_start": -0.1}, "p_start must be less than p_stop"),
        ({"p_updates": 0}, "at least 1, not 0"),
    ],
)
def test_invalid_arguments_are_rejected(changed: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_sae(**changed)  # pyright: ignore[reportArgumentType]


def test_p_has_its_last_value_after_p_stop() -> None:
    sae = make_sae(p_start=0.2, p_stop=0.8, p_updates=3)
    stages = []
    for progress in (0.0, 0.19, 0.21, 0.39, 0.41, 0.61, 0.79, 0.81, 1.0):
        sae.advance(progress)
        stages.append(int(sae.stage))
    assert stages == [0, 0, 1, 1, 2, 3, 3, 3, 3]
