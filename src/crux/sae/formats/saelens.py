"""Saving and loading SAEs in SAELens's format, which SAELens, SAEDashboard, SAEBench and Neuronpedia read.

An SAE is a folder with `cfg.json` and `sae_weights.safetensors`. crux saves the folded SAE (unit-norm decoder, no input scale, a
function of one token) as the architecture of SAELens 6 that computes the same function; see saelens_architectures.py. The weights
are plain data; no code in a folder is ever executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crux.config.errors import UserError
from crux.config.files import replacing_folder
from crux.sae.architectures.sae import SAE
from crux.sae.formats.saelens_architectures import (
    ARCHITECTURES,
    SaelensArchitecture,
    find_architecture,
    from_tensors,
    to_tensors,
)

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
FORMAT_VERSION = "6.54.12"
"""The version of sae-lens whose format this is, and which the tests use. sae-lens drops the metadata if no version ≥ 6 is given."""

REQUIRED_METADATA = ("model_name", "hook_name", "process_weights", "context_size", "prepend_bos", "dataset_path")
"""Keys of the metadata without which an SAE cannot be evaluated again; with SAELens's names for those that SAELens has."""

_READABLE_VALUES: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", False, None),
    "reshape_activations": ("none", "hook_z"),  # crux concatenates the heads of hook_z
    "activation_fn": ("relu",),
    "activation_fn_str": ("relu",),  # before version 6, TopK was `standard` with another activation function
}
"""Keys of cfg.json, and the values that they must have if they are present: with others the function is not one of crux's SAEs."""


def check_saveable(sae: SAE, *, transcodes: bool) -> None:
    """Raise a UserError if an SAE of this architecture could not be saved after training."""
    find_architecture(sae.fold(), transcodes=transcodes)


def save_sae(sae: SAE, folder: str | Path, metadata: Mapping[str, Any]) -> None:
    """Save an SAE to a folder, completely or not at all; an existing folder is replaced.

    `metadata` (plain JSON values) must have the keys `REQUIRED_METADATA` and, for a transcoder, `hook_name_out`, the hook point that it
    writes. It may have more. `load_sae` returns it, and in SAELens it is `sae.cfg.metadata`. Three keys are added: the version
    of the format, the scale that was folded into the weights (`input_scale`), and how TransformerLens must process the network
    (`model_from_pretrained_kwargs`).

    Raises:
        UserError: if SAELens has no such architecture.
    """
    folder = Path(folder)
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    assert not missing, f"metadata lacks {missing}"
    folded, transcodes = sae.fold(), "hook_name_out" in metadata
    name = find_architecture(folded, transcodes=transcodes)
    architecture = ARCHITECTURES[name]
    with_heads = metadata["hook_name"].endswith("hook_z") and not transcodes
    processing = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed"), metadata["process_weights"])
    config = {
        "architecture": name,
        "d_in": sae.d_model,
        "d_sae": sae.n_latents,
        **({"d_out": sae.d_out} if architecture.transcodes else {}),
        **{key: getattr(folded, key) for key in architecture.integer_keys},
        **architecture.constant_keys,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if with_heads else "none",
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "sae_lens_training_version": None,
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": processing,
            "input_scale": float(sae.input_scale),
            **metadata,
        },
    }
    with replacing_folder(folder) as written:
        save_file(to_tensors(folded, architecture), written / WEIGHTS)
        (written / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_sae(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Load an SAE and its metadata from a folder; it may come from other tools, with any decoder norms and input bias.

    Raises:
        UserError: if the folder or a file is missing or broken, shapes do not fit, or crux has no SAE with this function.
    """
    folder = Path(folder)
    config = _read_config(folder)
    architecture: SaelensArchitecture = ARCHITECTURES[config["architecture"]]
    d_in, d_sae = config["d_in"], config["d_sae"]
    d_out = config["d_out"] if architecture.transcodes else d_in
    tensors = _read_weights(folder / WEIGHTS, architecture.shapes(d_in=d_in, d_sae=d_sae, d_out=d_out))
    try:
        return from_tensors(tensors, architecture, config), dict(config.get("metadata", {}))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the contents of cfg.json after checking the keys that `load_sae` uses."""
    if not folder.is_dir():
        raise UserError(f"no SAE folder at {folder}")
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is not an SAE folder: no {CONFIG} in it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path}: not JSON, or a broken file ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("metadata", {}), dict):
        raise UserError(f"{path}: not a SAELens config")
    if not isinstance(name := config.get("architecture"), str) or name not in ARCHITECTURES:
        raise UserError(f"{path}: architecture {name!r} cannot be read; allowed are {', '.join(ARCHITECTURES)}")
    for key, allowed in _READABLE_VALUES.items():
        if key in config and config[key] not in allowed:
            raise UserError(f"{path}: {key}={config[key]!r} cannot be read; allowed is {allowed[0]!r}")
    architecture = ARCHITECTURES[name]
    for key in ("d_in", "d_sae", *(["d_out"] if architecture.transcodes else []), *architecture.integer_keys):
        if type(config.get(key)) is not int or config[key] < 1:
            raise UserError(f"{path}: {key} is {config.get(key)!r}, not a positive integer")
    return config


def _read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors in float32 after checking that the file has exactly these names and shapes."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not an SAE folder: no {WEIGHTS} in it")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file, or a broken one ({error})") from error
    if tensors.keys() != shapes.keys():
        raise UserError(f"{path}: holds {', '.join(sorted(tensors))}, not {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        if (actual := tuple(tensors[name].shape)) != shape:
            raise UserError(f"{path}: {name} is {actual}, not {shape} as {CONFIG} says")
    return {name: tensor.float() for name, tensor in tensors.items()}
