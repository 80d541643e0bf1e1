"""Configurations of tiny random networks, one per supported architecture, and helpers of the tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from crux.subjects.subject import Unembed

N_LAYERS, D_MODEL, D_VOCAB, N_CTX = 3, 32, 64, 48
_SIZES: dict[str, Any] = {
    "vocab_size": D_VOCAB, "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": N_CTX, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_positions": N_CTX,
}
_GEMMA: dict[str, Any] = {**_SIZES, "head_dim": 12}  # the concatenated heads are wider than the residual stream
_NEOX: dict[str, Any] = {**_SIZES, "rotary_pct": 0.25}
_WINDOWS: dict[str, Any] = {"num_key_value_heads": 2, "sliding_window": 6, "query_pre_attn_scalar": 8}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: GPT2Config(**_GPT2, bos_token_id=0, eos_token_id=0),
    "gpt2_packaged": lambda: GPT2Config(
        **_GPT2, bos_token_id=0, eos_token_id=0, activation_function="gelu_pytorch_tanh"
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_NEOX),
    "gpt_neox_sequential": lambda: GPTNeoXConfig(**_NEOX, use_parallel_residual=False),
    "llama": lambda: LlamaConfig(**_SIZES, num_key_value_heads=2),
    "llama_bias": lambda: LlamaConfig(**_SIZES, num_key_value_heads=2, attention_bias=True),
    "gemma": lambda: GemmaConfig(**_GEMMA, num_key_value_heads=1),
    "gemma2": lambda: Gemma2Config(**_GEMMA, **_WINDOWS, final_logit_softcapping=3.0),
    "gemma3": lambda: Gemma3TextConfig(**_GEMMA, **_WINDOWS),
}
PROCESSED = [
    "gpt2",
    "gpt2_packaged",
    "gpt_neox",
    "gpt_neox_sequential",
    "llama",
    "llama_bias",
]  # the weight processing is exact for these
TOKENS = torch.randint(0, D_VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))


def logits(unembed: Unembed, hidden: Tensor) -> Tensor:
    """Compute all logits at once, which only tests do."""
    z = hidden @ unembed.W_U.T
    z = z if unembed.b_U is None else z + unembed.b_U
    return z if unembed.softcap is None else unembed.softcap * torch.tanh(z / unembed.softcap)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with D_VOCAB words and end-of-text token `t0`; TransformerLens's bridge needs one."""
    words = WordLevel({f"t{i}": i for i in range(D_VOCAB)}, unk_token="t0")
    Tokenizer(words).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t0", "bos_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
