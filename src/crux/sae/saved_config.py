"""The file cfg.json of a saved SAE, in the layout of any version of SAELens, brought into that of version 6. Torch-free.

Before version 6, cfg.json was flat: keys of the function and of the network were next to each other, and some had other names. This
module does what SAELens's `handle_pre_6_0_config` does, and checks the types of all keys that crux or its users rely on.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from crux.config.errors import UserError
from crux.config.json_files import read_json_object, shorten_value

CONFIG = "cfg.json"

_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Keys of SAELens before version 6 → their names in version 6."""


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


_KINDS: dict[str, Callable[[object], bool]] = {
    "a string": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a whole number": lambda value: type(value) is int,
    "a positive integer": _is_count,
    "a number": _is_number,
    "an object": lambda value: isinstance(value, dict),
}
_METADATA = {
    "model_name": "a string",
    "model_class_name": "a string",
    "model_from_pretrained_kwargs": "an object",
    "hook_name": "a string",
    "hook_name_out": "a string",
    "hook_layer": "a whole number",
    "hook_head_index": "a whole number",
    "process_weights": "true or false",
    "context_size": "a positive integer",
    "prepend_bos": "true or false",
    "dataset_path": "a string",
    "neuronpedia_id": "a string",
    "sae_lens_version": "a string",
    "sae_lens_training_version": "a string",
    "input_scale": "a number",
    "sae": "a string",
    "loss": "a string",
    "sparsity": "a number",
    "target_l0": "a number",
    "seed": "a whole number",
}
"""Keys of the metadata and the kind of their values, which may also be null."""
_FLAT = [key for key in _METADATA if key not in ("process_weights", "input_scale", "sae", "loss", "sparsity", "seed")]
"""Keys of the metadata that were at the top level before version 6; the others are crux's own."""
_FUNCTION = {
    "apply_b_dec_to_input": "true or false",
    "rescale_acts_by_decoder_norm": "true or false",
    "finetuning_scaling_factor": "true or false",
    "activation_fn_kwargs": "an object",
}
"""Keys that determine the SAE's function, and the kind of their values."""


class SavedConfig(NamedTuple):
    """The contents of cfg.json."""

    function: dict[str, Any]
    """The keys that determine the SAE's function, with the names of SAELens 6; `architecture` is a string."""
    metadata: dict[str, Any]
    """The subject, hook points, weight processing and training of the SAE; empty if the file has no metadata."""


def read_saved_config(folder: Path) -> SavedConfig:
    """Read and check cfg.json of an SAE folder.

    Raises:
        UserError: if the folder or the file is missing or broken, or a key has a value of the wrong type.
    """
    path = folder / CONFIG
    try:
        if not folder.is_dir():
            raise UserError(f"no SAE folder at {folder}")
        if not path.is_symlink() and not path.exists():
            raise UserError(f"{folder} is not an SAE folder: no {CONFIG} in it")
    except OSError as error:  # a name that is too long
        raise UserError(f"no SAE folder at {folder} ({error.strerror})") from error
    config = read_json_object(path)
    for old, new in _OLD_NAMES.items():
        if old in config:
            value = config.pop(old)
            if config.setdefault(new, value) != value:
                raise UserError(f"{path}: {old} is {value!r} and {new} is {config[new]!r}; they mean the same")
    metadata = config.pop("metadata", None)
    if metadata is None:
        metadata = {key: config[key] for key in _FLAT if key in config}
        if metadata.get("hook_name") is not None:
            metadata.setdefault("prepend_bos", True)  # SAELens's default before version 6
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: metadata is {shorten_value(metadata)}, not an object")
    _check_kinds(metadata, _METADATA, path=path, may_be_null=True)
    _check_kinds(config, _FUNCTION, path=path, may_be_null=False)
    _read_topk(config, path=path)
    if not isinstance(architecture := config.setdefault("architecture", "standard"), str):
        raise UserError(f"{path}: architecture is {shorten_value(architecture)}, not a string")
    return SavedConfig(config, metadata)


def _read_topk(config: dict[str, Any], *, path: Path) -> None:
    """Turn `standard` with TopK as its activation function, as before version 6, into the architecture `topk` with `k`."""
    k = config.get("activation_fn_kwargs", {}).get("k")
    if config.get("activation_fn") == "topk" and config.get("architecture", "standard") in ("standard", "topk"):
        config["architecture"] = "topk"
        del config["activation_fn"]
    if config.get("architecture") == "topk" and k is not None and config.setdefault("k", k) != k:
        raise UserError(f"{path}: k is {shorten_value(config['k'])}, and {shorten_value(k)} in activation_fn_kwargs")


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, str], *, path: Path, may_be_null: bool) -> None:
    for key, kind in kinds.items():
        if key in values and not _KINDS[kind](values[key]) and not (may_be_null and values[key] is None):
            raise UserError(f"{path}: {key} is {shorten_value(values[key])}, not {kind}")
