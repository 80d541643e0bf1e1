"""A subject's shape, read from its config.json. Standard library only: wrong layers are refused before torch loads."""

import json
from pathlib import Path
from typing import NamedTuple

from crux.config.errors import UserError

CAUSAL_LMS = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""The supported networks: config.json's `model_type`, and the class that must stand under `architectures`."""

TOY_MODEL = "{} is a toy model: say experiment=toy/sae"
"""The answer to the folder of a trained toy model, or the run folder around it."""


class Shape(NamedTuple):
    """What a configuration needs to know of a subject."""

    n_layers: int
    """Number of blocks."""
    d_model: int
    """Width of the residual stream."""
    d_vocab: int
    """Number of tokens in the vocabulary."""
    n_ctx: int
    """Longest sequence it reads, in tokens."""
    architecture: str
    """`model_type` of config.json, a key of `CAUSAL_LMS`."""
    resid_mid: bool
    """Whether there is a residual between attention and MLP (not in parallel GPT-NeoX blocks)."""
    d_z: int
    """Width of the heads' outputs side by side, n_heads · d_head; not always d_model (Gemma)."""

    def hook_width(self, kind: str) -> int:
        """Dimensions of the activations at a hook point of that kind."""
        return self.d_z if kind == "z" else self.d_model


def read_config(folder: Path) -> dict[str, object]:
    """config.json of a model folder; UserError where folder or file is missing or is not JSON."""
    if not folder.is_dir():
        raise UserError(f"model folder {folder}: no such folder")
    path = folder / "config.json"
    if not path.is_file():
        if any((folder / "programs").glob("*/config.json")):
            raise UserError(TOY_MODEL.format(folder))
        raise UserError(f"model folder {folder}: no config.json in it; a Hugging Face model folder is needed")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON, or bytes that are not UTF-8
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a JSON object is needed, this is a {type(config).__name__}")
    return config


def read_shape(folder: str | Path) -> Shape:
    """The shape of the model in a Hugging Face folder.

    Raises UserError (one line) for a missing folder, a missing or corrupt config.json, an architecture that is not
    supported, a network that is no causal language model, and for missing sizes.
    """
    folder = Path(folder)
    config = read_config(folder)
    kind = config.get("model_type")
    if kind == "superposition":
        raise UserError(TOY_MODEL.format(folder))
    if not isinstance(kind, str) or kind not in CAUSAL_LMS:
        raise UserError(f"{folder}: model_type {kind!r} is not supported; allowed are {', '.join(CAUSAL_LMS)}")
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and CAUSAL_LMS[kind] not in classes:
        raise UserError(f"{folder}: {classes[0]} is not a causal language model; allowed is {CAUSAL_LMS[kind]}")

    def size(*keys: str) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        raise UserError(f"{folder / 'config.json'}: {keys[0]} is missing or is not a positive whole number")

    d_model, n_heads = size("hidden_size", "n_embd"), size("num_attention_heads", "n_head")
    d_head = 256 if kind.startswith("gemma") else d_model // n_heads  # unless stated, for Gemma as in Hugging Face
    return Shape(
        n_layers=size("num_hidden_layers", "n_layer"),
        d_model=d_model,
        d_vocab=size("vocab_size"),
        n_ctx=size("max_position_embeddings", "n_positions"),
        architecture=kind,
        resid_mid=not (kind == "gpt_neox" and bool(config.get("use_parallel_residual", True))),
        d_z=n_heads * (d_head if config.get("head_dim") is None else size("head_dim")),
    )
