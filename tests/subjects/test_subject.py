"""Clean and spliced passes: compared with TransformerLens's TransformerBridge on the same weights (conftest.py), and their cost."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.subjects.hooks import hook_names, parse_hook, sort_hooks
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject
from tests.support.recorded_operators import OperatorRecorder
from tests.support.tiny_subjects import CONFIGS, D_MODEL, D_VOCAB, N_CTX, N_LAYERS, PROCESSED, TOKENS, logits

# networks, and whether their weights are processed
CASES = [(kind, False) for kind in CONFIGS] + [(kind, True) for kind in PROCESSED]
# run_with_cache warns about its own default arguments
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:transformer_lens", "ignore::DeprecationWarning:transformer_lens"
)


def assert_near(mine: Tensor, theirs: Tensor, name: str) -> None:
    """Assert that two activations agree to 1e-5 of the largest absolute value."""
    error = (mine - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5, f"{name}: the largest difference is {error:.1e} of the largest value"


def shift(x: Tensor) -> Tensor:
    """Change the activation so much that an accidental clean pass would be noticed."""
    return 0.7 * x + 0.5 * x.roll(1, -1).relu() + 0.1


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'processed' if case[1] else 'raw'}")
def subject_and_bridge(
    request: pytest.FixtureRequest, subject_folder: Callable, bridge: Callable
) -> tuple[Subject, Any]:
    """A subject and the TransformerBridge of the same network."""
    kind, processed = request.param
    return load_subject(subject_folder(kind), process_weights=processed), bridge(kind, processed=processed)


@pytest.fixture
def gpt2(subject_folder: Callable[[str], Path]) -> Subject:
    return load_subject(subject_folder("gpt2"), process_weights=False)


def _list_hooks(subject: Subject) -> list[str]:
    return hook_names(N_LAYERS, resid_mid=not subject.parts.parallel)


def _merge_heads(x: Tensor) -> Tensor:
    """Concatenate the heads of an activation of the bridge."""
    return x.flatten(2)


def test_clean_pass_equals_transformer_lens(subject_and_bridge: tuple[Subject, Any]) -> None:
    subject, bridge = subject_and_bridge
    hooks = _list_hooks(subject)
    with torch.no_grad():
        want, cache = bridge.run_with_cache(TOKENS, names_filter=hooks)
    clean = subject.clean(TOKENS, capture=hooks)
    assert list(clean.activations) == hooks
    for name in hooks:
        assert_near(clean.activations[name], _merge_heads(cache[name]), name)
        assert clean.activations[name].shape[-1] == subject.hook_width(parse_hook(name).kind)
    assert clean.final is not None
    assert_near(logits(subject.unembed, clean.final), want, "logits")


def _bridge_splice(name: str) -> list[tuple[str, Callable[[Tensor, nn.Module], Tensor | None]]]:
    """Return forward hooks of the bridge that replace x by shift(x) at a hook point.

    The bridge's `hook_resid_mid` is only the second norm's input: unlike in HookedTransformer, a function there leaves the
    skip connection unchanged. The residual is therefore replaced by adding the difference to the attention's output.
    """
    if not name.endswith("resid_mid"):
        return [(name, lambda x, hook: shift(_merge_heads(x)).view_as(x))]
    block = name.removesuffix("hook_resid_mid")
    resid: list[Tensor] = []
    return [
        (block + "hook_resid_pre", lambda x, hook: resid.append(x)),
        (block + "hook_attn_out", lambda x, hook: shift(x + resid[0]) - resid[0]),
    ]


def test_spliced_pass_equals_transformer_lens_at_every_hook(subject_and_bridge: tuple[Subject, Any]) -> None:
    subject, bridge = subject_and_bridge
    hooks = _list_hooks(subject)
    for name in hooks:
        later = hooks[hooks.index(name) :]
        theirs: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: nn.Module, at: str, into: dict[str, Tensor] = theirs) -> None:
            into[at] = _merge_heads(x).clone()

        fwd = _bridge_splice(name) + [(at, partial(keep, at=at)) for at in later]
        with torch.no_grad():
            want = bridge.run_with_hooks(TOKENS, fwd_hooks=fwd)
            mine = subject.spliced(subject.clean(TOKENS, capture=[name], final=False), {name: shift}, capture=later)
        assert list(mine.activations) == later
        for at in later:
            assert_near(mine.activations[at], theirs[at], f"{at} after splicing {name}")
        assert_near(logits(subject.unembed, mine.final), want, f"logits after splicing {name}")


def test_several_splices_at_once(subject_and_bridge: tuple[Subject, Any]) -> None:
    subject, bridge = subject_and_bridge
    names = ["blocks.2.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"]
    names += ["blocks.1.attn.hook_z", "blocks.2.attn.hook_z"]
    with torch.no_grad():
        want = bridge.run_with_hooks(TOKENS, fwd_hooks=[hook for name in names for hook in _bridge_splice(name)])
        clean = subject.clean(TOKENS, capture=names)
        mine = subject.spliced(clean, dict.fromkeys(names, shift))
    assert_near(logits(subject.unembed, mine.final), want, "logits")


def test_a_transcoder_reads_at_one_hook_and_writes_at_another(gpt2: Subject, bridge: Callable) -> None:
    read, write = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"
    seen: list[Tensor] = []

    def record(x: Tensor, hook: object = None) -> Tensor:
        seen.append(x)
        return x

    with torch.no_grad():
        fwd = [(read, record), (write, lambda x, hook: shift(seen[-1]))]
        want = bridge("gpt2").run_with_hooks(TOKENS, fwd_hooks=fwd)
        mine = gpt2.spliced(gpt2.clean(TOKENS, capture=[read]), {read: record, write: lambda x: shift(seen[-1])})
    assert_near(logits(gpt2.unembed, mine.final), want, "logits")


def test_identity_splice_equals_the_clean_pass_for_changing_batch_shapes(gpt2: Subject) -> None:
    # other batch sizes of a known length, the full context, a single token, and more lengths than the four whose attention arguments
    # are kept, after which the first length comes again
    for batch, pos in [(2, 17), (3, 17), (1, N_CTX), (4, 5), (2, 1), (1, 6), (2, 7), (2, 17)]:
        tokens = torch.arange(batch * pos).view(batch, pos) % D_VOCAB
        for name in ("blocks.1.hook_attn_out", "blocks.1.attn.hook_z"):
            clean = gpt2.clean(tokens, capture=[name])
            spliced = gpt2.spliced(clean, {name: lambda x: x})
            assert clean.final is not None
            assert clean.final.shape == (batch, pos, D_MODEL)
            torch.testing.assert_close(spliced.final, clean.final, rtol=0, atol=0)


def test_gradient_reaches_the_function_but_not_the_subject(gpt2: Subject) -> None:
    scale = nn.Parameter(torch.ones(D_MODEL))
    name = "blocks.1.hook_resid_pre"
    clean = gpt2.clean(TOKENS, capture=[name, "blocks.2.hook_resid_pre"])
    assert clean.final is not None
    assert not any(x.requires_grad for x in (*clean.activations.values(), clean.final))
    spliced = gpt2.spliced(clean, {name: lambda x: x * scale}, capture=["blocks.2.hook_resid_pre"])
    (spliced.final.square().sum() + spliced.activations["blocks.2.hook_resid_pre"].sum()).backward()
    assert scale.grad is not None
    assert scale.grad.abs().min() > 0
    assert all(p.grad is None and not p.requires_grad for p in gpt2.model.parameters())
    assert not gpt2.model.training


def test_gradient_equals_finite_differences(gpt2: Subject) -> None:
    gpt2.to(dtype=torch.float64)
    name = "blocks.1.hook_attn_out"
    clean = gpt2.clean(TOKENS[:1, :4], capture=[name])
    scale = torch.full((D_MODEL,), 0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: gpt2.spliced(clean, {name: lambda x: (x * s).tanh()}).final, (scale,))


@pytest.fixture
def calls(gpt2: Subject) -> list[str]:
    """The names of the attention, projection and MLP modules that have run, in order."""
    recorded: list[str] = []
    for layer, block in enumerate(gpt2.parts.blocks):
        block.attn.register_forward_hook(lambda *_, at=f"attn{layer}": recorded.append(at))
        block.out.register_forward_hook(lambda *_, at=f"out{layer}": recorded.append(at))
        block.mlp.register_forward_hook(lambda *_, at=f"mlp{layer}": recorded.append(at))
    return recorded


def test_only_the_needed_modules_run(gpt2: Subject, calls: list[str]) -> None:
    gpt2.clean(TOKENS, capture=[])
    # the modules of the three blocks
    first, second, third = ([f"{part}{layer}" for part in ("attn", "out", "mlp")] for layer in range(N_LAYERS))
    assert calls == first + second + third
    for name, prefix, suffix in [
        ("blocks.0.hook_resid_pre", [], first + second + third),
        ("blocks.1.hook_resid_pre", first, second + third),
        ("blocks.1.attn.hook_z", [*first, "attn1"], ["out1", "mlp1", *third]),
        ("blocks.1.hook_attn_out", [*first, "attn1", "out1"], ["mlp1", *third]),
        ("blocks.1.hook_resid_mid", [*first, "attn1", "out1"], ["mlp1", *third]),
        ("blocks.1.hook_mlp_out", first + second, third),
        ("blocks.2.hook_resid_post", first + second + third, []),
    ]:
        calls.clear()
        # an earlier hook point is captured too: the pass must stop at the last one, not at the first
        clean = gpt2.clean(TOKENS, capture=["blocks.0.hook_resid_pre", name], final=False)
        assert clean.final is None
        assert calls == prefix, name
        calls.clear()
        gpt2.spliced(clean, {name: shift})
        assert calls == suffix, name


def test_clean_pass_with_nothing_to_compute_is_rejected(gpt2: Subject) -> None:
    with pytest.raises(UserError, match="nothing to compute"):
        gpt2.clean(TOKENS, capture=[], final=False)


def test_no_host_sync_and_no_logits(gpt2: Subject) -> None:
    tokens = TOKENS.repeat(4, 2)
    name = "blocks.1.hook_resid_pre"
    gpt2.clean(tokens, capture=[name])  # the first pass of each length may synchronise
    with OperatorRecorder() as recorder:
        gpt2.spliced(gpt2.clean(tokens, capture=[name]), {name: shift})
    assert not [op for op in recorder.operators if "local_scalar" in op or "item" in op or "nonzero" in op]
    assert D_VOCAB not in recorder.widths  # no other tensor is as wide as logits
    # the largest tensor is the MLP's hidden layer; attention scores would have 4 heads · 34 positions = 136 numbers per token
    assert recorder.largest == tokens.numel() * 4 * D_MODEL
    assert any("scaled_dot_product" in op for op in recorder.operators)
    # control: the recorder sees the synchronisation in the first pass of a new length, and logits
    with OperatorRecorder() as recorder:
        final = gpt2.clean(tokens[:, :11], capture=[]).final
        assert final is not None
        logits(gpt2.unembed, final)
    assert any("local_scalar" in op or "is_nonzero" in op for op in recorder.operators)
    assert D_VOCAB in recorder.widths


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "gemma"])
def test_no_mask_is_built_for_plain_causal_attention(kind: str, subject_folder: Callable[[str], Path]) -> None:
    """PyTorch's attention kernel has a causal mode; only the sliding windows of Gemma 2 and 3 need a mask."""
    subject = load_subject(subject_folder(kind), process_weights=False)
    replay = subject.clean(TOKENS, capture=["blocks.0.hook_resid_pre"]).replay
    assert [arguments["attention_mask"] for arguments in replay.arguments] == [None] * N_LAYERS


def test_gelu_is_one_kernel(gpt2: Subject) -> None:
    """GPT-2's activation function in Hugging Face consists of eight operations; nn.GELU computes the same in one."""
    assert [type(block.mlp.act) for block in gpt2.parts.blocks] == [nn.GELU] * N_LAYERS


@pytest.mark.parametrize("kind", CONFIGS)
def test_bfloat16(kind: str, subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder(kind), process_weights=False)
    capture = ["blocks.1.hook_resid_pre"]
    want = subject.clean(TOKENS, capture=capture).final
    subject.to(dtype=torch.bfloat16)
    clean = subject.clean(TOKENS, capture=capture)
    float_scale = torch.ones(D_MODEL, requires_grad=True)
    spliced = subject.spliced(clean, {capture[0]: lambda x: x.float() * float_scale})
    assert subject.dtype == spliced.final.dtype == torch.bfloat16
    assert want is not None
    assert (spliced.final.float() - want).norm() < 0.05 * want.norm()
    spliced.final.float().sum().backward()
    assert float_scale.grad is not None


def test_rotary_frequencies_stay_float32(subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder("llama"), process_weights=False).to(dtype=torch.bfloat16)
    assert subject.model.get_buffer("model.rotary_emb.inv_freq").dtype == torch.float32


def test_first_pass_in_inference_mode_allows_later_gradients(gpt2: Subject) -> None:
    with torch.inference_mode():
        gpt2.clean(TOKENS, capture=[])
    name = "blocks.1.hook_resid_pre"
    scale = torch.ones(D_MODEL, requires_grad=True)
    gpt2.spliced(gpt2.clean(TOKENS, capture=[name]), {name: lambda x: x * scale}).final.sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("kind", CONFIGS)
def test_forward_pass_of_the_wrapped_model_is_unchanged(kind: str, subject_folder: Callable[[str], Path]) -> None:
    """It includes the attention's output projection, which the subject runs separately, and gives the same logits."""
    subject = load_subject(subject_folder(kind), process_weights=False).to(dtype=torch.float64)
    final = subject.clean(TOKENS, capture=[]).final
    assert final is not None
    with torch.no_grad():
        torch.testing.assert_close(logits(subject.unembed, final), subject.model(TOKENS).logits)


def test_error_messages(gpt2: Subject, subject_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"nearest are blocks\.1\.hook_resid_pre"):
        gpt2.clean(TOKENS, capture=["blocks.1.hook_resid_per"])
    with pytest.raises(UserError, match="the model has 3 layers"):
        gpt2.clean(TOKENS, capture=["blocks.3.hook_resid_pre"])
    with pytest.raises(UserError, match="accepts at most 48"):
        gpt2.clean(torch.zeros(1, N_CTX + 1, dtype=torch.long), capture=[])
    clean = gpt2.clean(TOKENS, capture=["blocks.1.hook_resid_pre"])
    with pytest.raises(UserError, match="no hook point given"):
        gpt2.spliced(clean, {})
    with pytest.raises(UserError, match="the clean pass must capture it"):
        gpt2.spliced(clean, {"blocks.0.hook_resid_pre": shift})
    with pytest.raises(UserError, match=r"blocks\.0\.hook_resid_post lies before it"):
        gpt2.spliced(clean, {"blocks.1.hook_resid_pre": shift}, capture=["blocks.0.hook_resid_post"])
    parallel = load_subject(subject_folder("gpt_neox"), process_weights=False)
    with pytest.raises(UserError, match="no such hook point"):
        parallel.clean(TOKENS, capture=["blocks.1.hook_resid_mid"])


def test_activations_are_in_the_order_of_the_network(gpt2: Subject) -> None:
    wanted = ["blocks.2.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"]
    assert list(gpt2.clean(TOKENS, capture=wanted).activations) == sort_hooks(wanted)
