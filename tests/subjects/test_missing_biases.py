"""Every combination of biases that the supported architectures can have, with raw and with processed weights."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from crux.subjects.load import load_subject
from tests.support.tiny_subjects import TOKENS, logits

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GEMMA: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 12}
BOTH = (False, True)


def list_configs() -> dict[str, Callable[[], PreTrainedConfig]]:
    """Return one configuration per combination of options that add or leave out a bias, or decide which maps read what."""
    configs: dict[str, Callable[[], PreTrainedConfig]] = {}
    for attention, parallel, tied in product(BOTH, BOTH, BOTH):
        options: dict[str, Any] = {
            "attention_bias": attention,
            "use_parallel_residual": parallel,
            "tie_word_embeddings": tied,
        }
        configs[f"gpt_neox {attention=} {parallel=} {tied=}"] = lambda o=options: GPTNeoXConfig(**SIZES, **o)
    for attention, mlp, kv, tied in product(BOTH, BOTH, (1, 2, 4), BOTH):
        options: dict[str, Any] = {
            "attention_bias": attention,
            "mlp_bias": mlp,
            "num_key_value_heads": kv,
            "tie_word_embeddings": tied,
        }
        configs[f"llama {attention=} {mlp=} {kv=} {tied=}"] = lambda o=options: LlamaConfig(**SIZES, **o)
    for tied in BOTH:
        sizes: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
        configs[f"gpt2 {tied=}"] = lambda s=sizes, t=tied: GPT2Config(
            **s, bos_token_id=0, eos_token_id=0, tie_word_embeddings=t
        )
    for kind, attention in product((GemmaConfig, Gemma2Config, Gemma3TextConfig), BOTH):
        configs[f"{kind.model_type} {attention=}"] = lambda k=kind, a=attention: k(**GEMMA, attention_bias=a)
    return configs


CONFIGS = list_configs()


def save_perturbed(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Save a network with random weights, norms and biases; return it with Hugging Face's eager attention."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    config.save_pretrained(folder)
    weights = {name: weight.detach().contiguous() for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights = {
            name: weight for name, weight in weights.items() if name not in ("lm_head.weight", "embed_out.weight")
        }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_are_those_of_hugging_face(name: str, tmp_path: Path) -> None:
    model = save_perturbed(CONFIGS[name](), tmp_path)
    with torch.no_grad():
        want = model(TOKENS).logits.log_softmax(-1)
    for processed in (False,) if name.startswith("gemma") else (False, True):
        subject = load_subject(tmp_path, process_weights=processed)
        final = subject.clean(TOKENS, capture=[]).final
        assert final is not None
        torch.testing.assert_close(logits(subject.unembed, final).log_softmax(-1), want, rtol=0, atol=2e-5)
        # a spliced pass that changes nothing gives the same
        clean = subject.clean(TOKENS, capture=["blocks.1.hook_resid_pre"])
        again = subject.spliced(clean, {"blocks.1.hook_resid_pre": lambda x: x}).final
        torch.testing.assert_close(again, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parallel", BOTH)
def test_biases_that_the_processing_adds(parallel: bool, tmp_path: Path) -> None:
    """Without attention biases, the query-key-value map gets the norm's bias, and the output projection that of the values."""
    save_perturbed(GPTNeoXConfig(**SIZES, attention_bias=False, use_parallel_residual=parallel), tmp_path)
    raw, processed = (load_subject(tmp_path, process_weights=on) for on in (False, True))
    bias = processed.model.get_parameter("gpt_neox.layers.0.attention.query_key_value.bias")
    norm = raw.model.get_submodule("gpt_neox.layers.0.input_layernorm")
    W = raw.model.get_parameter("gpt_neox.layers.0.attention.query_key_value.weight")
    by_head = (W @ norm.get_parameter("bias")).view(4, 3, 8)
    torch.testing.assert_close(bias.view(4, 3, 8)[:, :2], by_head[:, :2])
    assert bias.view(4, 3, 8)[:, 2].abs().max() == 0  # moved into the output projection, and centred there
    out = raw.model.get_parameter("gpt_neox.layers.0.attention.dense.weight") @ by_head[:, 2].flatten()
    moved = processed.model.get_parameter("gpt_neox.layers.0.attention.dense.bias")
    torch.testing.assert_close(moved, out - out.mean(), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in processed.model.parameters())
