"""SAELens's folder: `cfg.json` and `sae_weights.safetensors`, as SAELens, SAEDashboard, SAEBench and Neuronpedia read.

crux saves the folded SAE (unit-norm decoder, no input scale) as SAELens's `standard` architecture of version 6:
c = ReLU(x W_enc + b_enc), x̂ = c W_dec + b_dec. The weights are data; nothing of a folder is ever executed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crux.saes.relu import ReluSAE

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
FORMAT_VERSION = "6.54.12"
"""The sae-lens whose format this is, and that the tests open it with; without a version ≥ 6 it loses the metadata."""

REQUIRED = ("model_name", "hook_name", "process_weights", "context_size", "prepend_bos", "dataset_path")
"""What must be known of an SAE before it may be judged again; names are SAELens's where SAELens has one."""


def save(sae: ReluSAE, folder: str | Path, metadata: Mapping[str, Any]) -> None:
    """Writes the folder whole or not at all; a folder of that name is replaced.

    `metadata` (plain JSON values) holds at least `REQUIRED` and may hold more; it comes back from `load`, and as
    `sae.cfg.metadata` in SAELens. Added here: the version of the format, the scale that was folded away
    (`input_scale`) and how TransformerLens must process the network (`model_from_pretrained_kwargs`).
    """
    folder = Path(folder)
    missing = [key for key in REQUIRED if key not in metadata]
    assert not missing, f"metadata lacks {missing}"
    folded = sae.folded()
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in folded.named_parameters()}
    processing = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed"), metadata["process_weights"])
    config = {
        "architecture": "standard",
        "d_in": sae.d_model,
        "d_sae": sae.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "sae_lens_training_version": None,
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": processing,
            "input_scale": float(sae.input_scale),
            **metadata,
        },
    }
    written = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    written.mkdir(parents=True)
    try:
        save_file(tensors, written / WEIGHTS)
        (written / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)
        written.rename(folder)
    except BaseException:
        shutil.rmtree(written, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def load(folder: str | Path) -> tuple[ReluSAE, dict[str, Any]]:
    """The SAE of a folder and its metadata; other people's `standard` SAEs too.

    A decoder's norms that are not one are folded into the encoder, and a decoder bias that is subtracted from the
    input into the encoder's bias: the function stays the same.

    Raises:
        ValueError: where folder or file is missing or broken, the architecture is another one, or shapes do not fit.
    """
    folder = Path(folder)
    config = _read_config(folder)
    d_model, n_latents = config["d_in"], config["d_sae"]
    tensors = _read_weights(
        folder / WEIGHTS,
        {"W_enc": (d_model, n_latents), "b_enc": (n_latents,), "W_dec": (n_latents, d_model), "b_dec": (d_model,)},
    )
    if config.get("apply_b_dec_to_input", True):  # SAELens's own default
        tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
    norm = tensors["W_dec"].norm(dim=-1)
    if not torch.allclose(norm, torch.ones(()), rtol=0, atol=1e-6):
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norm, tensors["b_enc"] * norm
        tensors["W_dec"] = torch.nn.functional.normalize(tensors["W_dec"], dim=-1)
    sae = ReluSAE(
        d_model=d_model, n_latents=n_latents, init="tied", init_norm=1.0, generator=torch.Generator().manual_seed(0)
    )
    sae.load_state_dict(tensors | {"input_scale": torch.ones(())})
    return sae, dict(config.get("metadata", {}))


def _read_config(folder: Path) -> dict[str, Any]:
    """cfg.json, checked for what `load` relies on."""
    if not folder.is_dir():
        raise ValueError(f"no SAE folder at {folder}")
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not an SAE folder: no {CONFIG} in it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{path}: not JSON, or a broken file ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("metadata", {}), dict):
        raise ValueError(f"{path}: not a SAELens config")
    if (architecture := config.get("architecture")) != "standard":
        raise ValueError(f"{path}: architecture {architecture!r} cannot be read; allowed is 'standard'")
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise ValueError(f"{path}: {key}={config[key]!r} cannot be read; allowed is 'none'")
    for key in ("d_in", "d_sae"):
        if type(config.get(key)) is not int or config[key] < 1:
            raise ValueError(f"{path}: {key} is {config.get(key)!r}, not a positive integer")
    return config


def _read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of those names and shapes, float32, and no others."""
    if not path.is_file():
        raise ValueError(f"{path.parent} is not an SAE folder: no {WEIGHTS} in it")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or a broken one ({error})") from error
    if tensors.keys() != shapes.keys():
        raise ValueError(f"{path}: holds {', '.join(sorted(tensors))}, not {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise ValueError(f"{path}: {name} is {found}, not {shape} as {CONFIG} says")
    return {name: tensor.float() for name, tensor in tensors.items()}
