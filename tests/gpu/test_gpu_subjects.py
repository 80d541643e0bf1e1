"""Networks on CUDA: clean and spliced passes, and gradients, equal those of the CPU for every architecture."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crux.subjects.hooks import FINAL
from crux.subjects.load import load_subject
from crux.subjects.processing import process_weights
from crux.subjects.subject import Subject
from tests.support.cuda import DEVICE, assert_equal_up_to_rounding, relative_error
from tests.support.small_networks import random_subject
from tests.support.tiny_subjects import CONFIGS, PROCESSED, TOKENS

pytestmark = pytest.mark.gpu

HOOK = "blocks.1.hook_resid_pre"
LATER = ("blocks.2.attn.hook_z", "blocks.2.hook_resid_post")
BFLOAT16_ERROR = 0.1
"""Largest relative error of bfloat16 after three random blocks: each rounding is 0.4 %, and random weights amplify it."""


def load_processed(kind: str) -> Subject:
    """Return a random network with processed weights."""
    subject = random_subject(kind)
    process_weights(subject.model)
    return Subject(subject.model, name=kind, process_weights=True)


def load_packaged() -> Subject:
    return load_subject("tiny", process_weights=False)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    **{kind: lambda kind=kind: random_subject(kind) for kind in CONFIGS},
    **{f"{kind}_processed": lambda kind=kind: load_processed(kind) for kind in PROCESSED},
    "packaged": load_packaged,
}


def weighted_square(final: Tensor) -> Tensor:
    """Return the mean of the weighted squares of final states.

    Without weights it would be almost constant behind a normalisation whose scale is folded, with nothing but rounding as its gradient.
    """
    weights = torch.linspace(0.5, 1.5, final.shape[-1], device=final.device)
    return (weights * final.float()).square().mean()


def run_passes(subject: Subject, device: torch.device) -> dict[str, Tensor]:
    """Return activations, final states and gradients of a clean and a spliced pass, by name."""
    tokens = TOKENS.to(device)
    clean, gradients = subject.clean_with_gradients(
        tokens, gradient_hooks=[HOOK], loss=weighted_square, capture=[HOOK, *LATER]
    )
    value = clean.activations[HOOK].clone().requires_grad_()
    spliced = subject.spliced(clean, {HOOK: lambda _: 0.5 * value}, capture=LATER)
    (to_value,) = torch.autograd.grad(weighted_square(spliced.final), value)
    continued = subject.continue_from(clean, HOOK, 0.5 * clean.activations[HOOK], ends=[FINAL])
    assert clean.final is not None
    return {
        **{f"clean {hook}": value for hook, value in clean.activations.items()},
        **{f"spliced {hook}": value for hook, value in spliced.activations.items()},
        **{f"gradient at {hook}": value for hook, value in gradients.items()},
        "clean final": clean.final,
        "spliced final": spliced.final,
        "continued final": continued[FINAL],
        "gradient of the spliced pass": to_value,
        "directions": subject.map_to_residual(LATER[0], torch.eye(subject.d_z, device=device)),
    }


@pytest.mark.parametrize("kind", SUBJECTS)
def test_passes_equal_those_of_the_cpu(kind: str) -> None:
    subject = SUBJECTS[kind]()
    expected = run_passes(subject, torch.device("cpu"))
    actual = run_passes(subject.to(device=DEVICE), DEVICE)
    for name, value in expected.items():
        assert_equal_up_to_rounding(actual[name], value, name)


@pytest.mark.parametrize("kind", SUBJECTS)
def test_passes_in_bfloat16_are_near_those_in_float32(kind: str) -> None:
    subject = SUBJECTS[kind]()
    expected = run_passes(subject, torch.device("cpu"))
    actual = run_passes(subject.to(device=DEVICE, dtype=torch.bfloat16), DEVICE)
    for name in ("clean final", "spliced final"):
        assert actual[name].dtype is torch.bfloat16
        assert relative_error(actual[name], expected[name]) < BFLOAT16_ERROR, name


def test_a_long_context_equals_that_of_the_cpu() -> None:
    """The packaged model's whole context, for which attention uses other kernels than for a few tokens."""
    tokens = torch.randint(0, 2048, (2, 256), generator=torch.Generator().manual_seed(0))
    expected, actual = (
        load_subject("tiny", process_weights=False, device=device).clean(tokens.to(device), capture=[HOOK])
        for device in ("cpu", DEVICE)
    )
    assert expected.final is not None
    assert actual.final is not None
    assert_equal_up_to_rounding(actual.final, expected.final, "final")
