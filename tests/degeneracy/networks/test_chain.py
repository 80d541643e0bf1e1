"""Tests of passes that continue from a changed activation, in language models and in chains of maps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from crux.config.errors import UserError
from crux.degeneracy.networks.chain import Chain
from crux.subjects.load import load_subject
from crux.subjects.subject import FINAL
from tests.support.tiny_subjects import CONFIGS, TOKENS


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    return Chain({"input": nn.Identity(), "layer.0": nn.Linear(3, 4), "relu.0": nn.ReLU(), "output": nn.Linear(4, 2)})


@pytest.mark.parametrize("kind", CONFIGS)
def test_continued_pass_equals_the_spliced_pass(kind: str, subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder(kind), process_weights=False)
    # from inside the attention to a later block, and from the first block to the output
    for start, end in (("blocks.1.attn.hook_z", "blocks.2.hook_resid_pre"), ("blocks.0.hook_resid_pre", FINAL)):
        captured = [start] if end == FINAL else [start, end]
        clean = subject.clean(TOKENS, capture=captured)
        changed = (1.1 * clean.activations[start] + 0.1).requires_grad_()
        found = subject.continue_from(clean, start, changed, ends=[end])[end]
        spliced = subject.spliced(clean, {start: lambda x, changed=changed: changed}, capture=captured)
        expected = spliced.final if end == FINAL else spliced.activations[end]
        assert torch.equal(found, expected)
        assert torch.autograd.grad(found.sum(), changed)[0].abs().sum() > 0


def test_continued_pass_runs_no_block_after_the_last_end(subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder("gpt2"), process_weights=False)
    blocks_run: list[int] = []
    for layer, block in enumerate(subject.parts.blocks):
        block.norm1.register_forward_hook(lambda *_, layer=layer: blocks_run.append(layer))
    clean = subject.clean(TOKENS, capture=["blocks.0.hook_resid_mid"], final=False)
    blocks_run.clear()
    subject.continue_from(
        clean, "blocks.0.hook_resid_mid", clean.activations["blocks.0.hook_resid_mid"], ends=["blocks.1.hook_resid_pre"]
    )
    assert blocks_run == []  # block 0 is continued after its first norm, and block 1 is not run


def test_chain_is_the_composition_of_its_maps(chain: Chain) -> None:
    x = torch.randn(5, 3)
    clean = chain.clean(x, capture=["relu.0", "input"], final=True)
    assert torch.equal(clean.activations["input"], x)
    # the stage of the hook point layer.0 is named layer_0, because names of submodules have no dots
    assert torch.equal(clean.activations["relu.0"], chain.stages["layer_0"](x).relu())
    assert clean.final is not None
    assert torch.equal(chain(x), clean.final)
    assert not clean.activations["relu.0"].requires_grad
    value = clean.activations["relu.0"].clone().requires_grad_()
    found = chain.continue_from(clean, "relu.0", value, ends=["output", "relu.0"])
    assert torch.equal(found["output"], chain(x))
    assert found["relu.0"] is value
    assert torch.allclose(
        torch.autograd.grad(found["output"][:, 0].sum(), value)[0][0], chain.get_parameter("stages.output.weight")[0]
    )


def test_invalid_hook_points_are_rejected(chain: Chain, subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder("gpt2"), process_weights=False)
    chain_clean = chain.clean(torch.ones(1, 3), capture=["relu.0"], final=False)
    start = "blocks.1.hook_resid_pre"
    subject_clean = subject.clean(TOKENS, capture=[start])
    with pytest.raises(UserError, match=r"from relu.0 to layer.0: the second lies before the first"):
        chain.continue_from(chain_clean, "relu.0", torch.ones(1, 4), ends=["layer.0"])
    with pytest.raises(UserError, match=r"relu.1: no such hook point; there are input, layer.0, relu.0, output"):
        chain.continue_from(chain_clean, "relu.0", torch.ones(1, 4), ends=["relu.1"])
    with pytest.raises(UserError, match="no hook point given"):
        chain.continue_from(chain_clean, "relu.0", torch.ones(1, 4), ends=[])
    with pytest.raises(UserError, match="mlp: no such hook point"):
        chain.clean(torch.ones(1, 3), capture=["mlp"], final=False)
    with pytest.raises(UserError, match=r"from blocks.1.hook_resid_pre to blocks.0.hook_resid_mid"):
        subject.continue_from(subject_clean, start, subject_clean.activations[start], ends=["blocks.0.hook_resid_mid"])
    with pytest.raises(UserError, match="the clean pass must capture it"):
        subject.continue_from(subject_clean, "blocks.0.hook_resid_pre", subject_clean.activations[start], ends=[start])


def test_final_hook_point_is_the_final_hidden_state(subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder("gpt2"), process_weights=False)
    clean = subject.clean(TOKENS, capture=["blocks.1.hook_resid_pre", FINAL], final=False)
    final = subject.clean(TOKENS, capture=[]).final
    assert final is not None
    assert torch.equal(clean.activations[FINAL], final)
    value = torch.zeros_like(clean.activations[FINAL])
    assert subject.continue_from(clean, FINAL, value, ends=[FINAL]) == {FINAL: value}
