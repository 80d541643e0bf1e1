"""A subject's shape, read from its config.json.

This module imports only the standard library, so that a wrong layer is reported before torch is loaded.
"""

from pathlib import Path
from typing import Any, NamedTuple

from crux.config.errors import UserError
from crux.config.json_files import read_json_object, shorten_value

CAUSAL_LMS = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""Supported architectures: `model_type` in config.json, and the class that its `architectures` must name."""

_LARGEST_SIZE = 2**40
"""Largest size that is taken for one; products of larger ones do not fit into 64 bits."""

TOY_MODEL_ERROR = "{} is a toy model: use experiment=toy/sae"
"""Error message for a folder that holds a trained toy model."""


class Shape(NamedTuple):
    """The sizes of a subject that checking a configuration needs."""

    n_layers: int
    """Number of blocks."""
    d_model: int
    """Width of the residual stream."""
    d_vocab: int
    """Number of tokens in the vocabulary."""
    n_ctx: int
    """Longest sequence that the subject accepts, in tokens."""
    architecture: str
    """`model_type` of config.json, a key of `CAUSAL_LMS`."""
    resid_mid: bool
    """True if its blocks have `hook_resid_mid`; parallel GPT-NeoX blocks do not."""
    d_z: int
    """Width of the concatenated head outputs, n_heads · d_head; not always d_model (Gemma)."""

    def hook_width(self, kind: str) -> int:
        """Return the width of the activations at hook points of a kind in `hooks.KINDS`."""
        return self.d_z if kind == "z" else self.d_model


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder; raise UserError if folder or file is missing or broken."""
    if not folder.is_dir():
        raise UserError(f"model folder {folder}: no such folder")
    path = folder / "config.json"
    if not path.exists() and not path.is_symlink():
        if any((folder / "programs").glob("*/config.json")):
            raise UserError(TOY_MODEL_ERROR.format(folder))
        raise UserError(f"model folder {folder}: no config.json in it; a Hugging Face model folder is needed")
    return read_json_object(path)


def read_shape(folder: str | Path) -> Shape:
    """Read the shape of the model in a Hugging Face folder.

    Raises UserError (one line) if the folder is missing, config.json is missing or corrupt, the architecture is not
    supported, the model is not a causal language model, or a size is missing.
    """
    folder = Path(folder)
    config, path = read_config(folder), folder / "config.json"
    kind = config.get("model_type")
    if kind == "superposition":
        raise UserError(TOY_MODEL_ERROR.format(folder))
    if not isinstance(kind, str) or kind not in CAUSAL_LMS:
        raise UserError(
            f"{folder}: model_type {shorten_value(kind)} is not supported; allowed are {', '.join(CAUSAL_LMS)}"
        )
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and CAUSAL_LMS[kind] not in classes:
        name = classes[0] if isinstance(classes[0], str) else shorten_value(classes[0])
        raise UserError(f"{folder}: {name} is not a causal language model; allowed is {CAUSAL_LMS[kind]}")

    def read_size(*keys: str) -> int:
        """Return the value of these keys, which mean the same in different architectures; they must agree if there are several."""
        given = {key: config[key] for key in keys if config.get(key) is not None}
        for key, value in given.items():
            if type(value) is not int or not 0 < value <= _LARGEST_SIZE:
                raise UserError(
                    f"{path}: {key} is {shorten_value(value)}, not a positive whole number of a possible size"
                )
        if not given:
            raise UserError(f"{path}: {keys[0]} is missing")
        if len(set(given.values())) > 1:
            raise UserError(f"{path}: {' and '.join(f'{key}={value}' for key, value in given.items())} mean the same")
        return next(iter(given.values()))

    d_model, n_heads = read_size("hidden_size", "n_embd"), read_size("num_attention_heads", "n_head")
    # the defaults of Hugging Face if head_dim is not given
    default_d_head = 256 if kind.startswith("gemma") else d_model // n_heads
    return Shape(
        n_layers=read_size("num_hidden_layers", "n_layer"),
        d_model=d_model,
        d_vocab=read_size("vocab_size"),
        n_ctx=read_size("max_position_embeddings", "n_positions"),
        architecture=kind,
        resid_mid=not (kind == "gpt_neox" and bool(config.get("use_parallel_residual", True))),
        d_z=n_heads * (default_d_head if config.get("head_dim") is None else read_size("head_dim")),
    )
