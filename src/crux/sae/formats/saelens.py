"""Saving and loading SAEs in SAELens's format, which SAELens, SAEDashboard, SAEBench and Neuronpedia read.

An SAE is a folder with `cfg.json` and `sae_weights.safetensors`. crux saves the folded SAE (unit-norm decoder, no input scale, a
function of one token) as the architecture of SAELens 6 that computes the same function; see saelens_architectures.py. The weights
are plain data; no code in a folder is ever executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from crux.config.errors import UserError
from crux.config.files import replacing_folder
from crux.config.json_files import shorten_value
from crux.config.tensor_files import check_finite, load_tensors, read_tensor_header
from crux.sae.architectures.sae import SAE
from crux.sae.formats.saelens_architectures import (
    ARCHITECTURES,
    SCALING_FACTORS,
    SaelensArchitecture,
    find_architecture,
    from_tensors,
    to_tensors,
)
from crux.sae.saved_config import CONFIG, read_saved_config

WEIGHTS = "sae_weights.safetensors"
FORMAT_VERSION = "6.54.12"
"""The version of sae-lens whose format this is, and which the tests use. sae-lens drops the metadata if no version ≥ 6 is given."""

REQUIRED_METADATA = ("model_name", "hook_name", "process_weights", "context_size", "prepend_bos", "dataset_path")
"""Keys of the metadata without which an SAE cannot be evaluated again; with SAELens's names for those that SAELens has."""

_READABLE_VALUES: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", False, None),
    "reshape_activations": ("none", "hook_z"),  # crux concatenates the heads of hook_z
    "activation_fn": ("relu",),  # `read_saved_config` has turned `topk` into an architecture
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
        (written / WEIGHTS).write_bytes(save(to_tensors(folded, architecture)))  # says if the disk is full
        (written / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_sae(folder: str | Path) -> tuple[SAE, dict[str, Any]]:
    """Load an SAE and its metadata from a folder; it may come from other tools, with any decoder norms and input bias.

    The SAE has the metadata as its attribute `metadata`, too, by which its place is checked when it is used. Folders of SAELens
    before version 6 keep the metadata that they have.

    Raises:
        UserError: if the folder or a file is missing or broken, shapes do not fit, a weight is not a finite real number, or crux has no
            SAE with this function.
    """
    folder = Path(folder)
    config, metadata = read_saved_config(folder)
    _check_function(config, path=folder / CONFIG)
    architecture: SaelensArchitecture = ARCHITECTURES[config["architecture"]]
    d_in, d_sae = config["d_in"], config["d_sae"]
    d_out = config["d_out"] if architecture.transcodes else d_in
    tensors = _read_weights(folder / WEIGHTS, architecture.shapes(d_in=d_in, d_sae=d_sae, d_out=d_out))
    try:
        sae = from_tensors(tensors, architecture, config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    sae.metadata = metadata
    return sae, metadata


def _check_function(config: Mapping[str, Any], *, path: Path) -> None:
    """Check that crux has an SAE with the function that cfg.json describes, and that the sizes are positive integers."""
    name = config["architecture"]
    if name not in ARCHITECTURES:
        raise UserError(
            f"{path}: architecture {shorten_value(name)} cannot be read; allowed are {', '.join(ARCHITECTURES)}"
        )
    for key, allowed in _READABLE_VALUES.items():
        if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in allowed):
            raise UserError(f"{path}: {key}={shorten_value(config[key])} cannot be read; allowed is {allowed[0]!r}")
    architecture = ARCHITECTURES[name]
    for key in ("d_in", "d_sae", *(["d_out"] if architecture.transcodes else []), *architecture.integer_keys):
        if type(config.get(key)) is not int or config[key] < 1:
            raise UserError(f"{path}: {key} is {shorten_value(config.get(key))}, not a positive integer")


def _read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors in float32 after checking that the file has these names and shapes, and finite real numbers.

    Names, shapes and types are checked in the file's header, before memory is allocated for tensors. SAELens before version 6 may have
    added a factor per latent, `scaling_factor`, which is returned if it is there.
    """
    if not path.is_symlink() and not path.exists():
        raise UserError(f"{path.parent} is not an SAE folder: no {WEIGHTS} in it")
    header = read_tensor_header(path)
    factors = [name for name in SCALING_FACTORS if name in header]
    if header.keys() - set(factors) != shapes.keys():
        raise UserError(f"{path}: holds {', '.join(sorted(header))}, not {', '.join(sorted(shapes))}")
    for name, shape in {**shapes, **dict.fromkeys(factors, shapes["W_enc"][1:])}.items():
        if header[name].shape != shape:
            raise UserError(f"{path}: {name} is {header[name].shape}, not {shape} as {CONFIG} says")
        if not header[name].is_real:
            raise UserError(f"{path}: {name} is of type {header[name].dtype}, not of floating-point numbers")
    tensors = {name: tensor.float() for name, tensor in load_tensors(path).items()}
    check_finite(tensors, path=path)
    return tensors
