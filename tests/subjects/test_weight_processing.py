"""Weight processing keeps the function and centres the weights; test_subject.py compares it with TransformerLens's bridge."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crux.subjects.load import load_subject
from tests.support.tiny_subjects import D_MODEL, N_LAYERS, PROCESSED, TOKENS, logits


@pytest.mark.parametrize("kind", PROCESSED)
def test_processing_keeps_the_function(kind: str, subject_folder: Callable[[str], Path]) -> None:
    raw, processed = (load_subject(subject_folder(kind), process_weights=process) for process in (False, True))
    assert (raw.process_weights, processed.process_weights) == (False, True)
    capture = ["blocks.1.hook_resid_pre"]
    raw_pass, processed_pass = (subject.clean(TOKENS, capture=capture) for subject in (raw, processed))
    assert raw_pass.final is not None
    assert processed_pass.final is not None
    want = logits(raw.unembed, raw_pass.final).log_softmax(-1)
    torch.testing.assert_close(logits(processed.unembed, processed_pass.final).log_softmax(-1), want, rtol=0, atol=2e-5)
    # control: processing changes the residual stream, because it centres it. RMSNorm depends on the mean of the stream, so that the
    # stream of a Llama is not centred
    if not kind.startswith("llama"):
        assert (raw_pass.activations[capture[0]] - processed_pass.activations[capture[0]]).abs().max() > 0.1


def test_activations_and_unembedding_are_centred(subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder("gpt2"), process_weights=True)
    hooks = [
        f"blocks.{layer}.hook_{kind}" for layer in range(N_LAYERS) for kind in ("resid_pre", "attn_out", "mlp_out")
    ]
    for name, x in subject.clean(TOKENS, capture=hooks).activations.items():
        assert x.mean(-1).abs().max() < 1e-5, name
    unembed = subject.unembed
    assert unembed.W_U.mean(0).abs().max() < 1e-6
    assert unembed.W_U.mean(1).abs().max() < 1e-6
    assert unembed.b_U is not None
    assert unembed.b_U.abs().max() > 0.01  # the bias of the final norm has been folded into b_U, which was zero
    assert unembed.b_U.mean().abs() < 1e-5
    assert unembed.W_U is not subject.parts.embed.weight
    for part in subject.parts.blocks:
        for norm in (part.norm1, part.norm2):
            assert torch.equal(norm.get_parameter("weight"), torch.ones(D_MODEL))
            assert torch.equal(norm.get_parameter("bias"), torch.zeros(D_MODEL))


def test_processing_is_done_in_float32(subject_folder: Callable[[str], Path]) -> None:
    exact = load_subject(subject_folder("gpt2"), process_weights=True)
    rounded = load_subject(subject_folder("gpt2"), process_weights=True, dtype=torch.bfloat16)
    torch.testing.assert_close(rounded.unembed.W_U, exact.unembed.W_U.bfloat16(), rtol=0, atol=0)
