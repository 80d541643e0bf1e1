"""Load a subject from a Hugging Face model folder: safetensors only, nothing unpickled, no code from the folder run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from crux.config.errors import UserError
from crux.subjects.finite import describe_non_finite, locate_non_finite, probe_tokens
from crux.subjects.processing import process_weights as process
from crux.subjects.shape import read_config, read_shape
from crux.subjects.source import find_folder
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.subjects.weight_files import StoredWeight, check_weights, is_ignored

__all__ = ["load_subject", "load_tokenizer"]

_UNUSED_KEYS = (
    "num_labels", "id2label", "label2id", "problem_type", "task_specific_params", "auto_map", "quantization_config",
    "dtype", "torch_dtype", "attn_implementation", "experts_implementation", "is_encoder_decoder", "output_attentions",
    "output_hidden_states", "return_dict", "use_cache", "name_or_path", "transformers_version",
)  # fmt: skip
"""Keys of config.json that do not change what a language model computes here, but may allocate memory or name code."""


def load_subject(
    source: str | Path,
    *,
    process_weights: bool,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Subject:
    """Load the frozen language model "tiny" (packaged), one in a folder, or one of the hub such as "gpt2".

    `process_weights` folds the norms and centres the weights as TransformerLens does, in float32, before the cast
    to `dtype`. Raises UserError (one line) if the folder is missing, the hub cannot be reached, the architecture is not
    supported, the weights are missing, corrupt or do not fit config.json, or a weight or an activation of a short sequence is NaN or
    infinite.
    """
    folder = find_folder(source)
    shape = read_shape(folder)
    values = read_config(folder)
    if values.get("quantization_config") is not None:
        raise UserError(f"model folder {folder}: quantised weights are not supported")
    stored = check_weights(folder)
    # SDPA cannot cap attention logits, which Gemma 2 does
    attention = "eager" if shape.architecture == "gemma2" else "sdpa"
    if shape.n_layers > len(stored):
        what = f"it says {shape.n_layers:,} layers, and there are {len(stored):,} weights"
        raise UserError(f"model folder {folder}: the weights do not fit config.json: {what}")
    with _reading_config(folder), _silence_transformers():
        config = _make_config(shape.architecture, values)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    _check_sizes(empty, stored, folder=folder)
    model = _read_model(folder, config=config, dtype=torch.float32 if process_weights else dtype, attention=attention)
    _check_weights_finite(model, stored)
    if process_weights:
        process(model)
    subject = Subject(model, name=str(source), process_weights=process_weights).to(device=device, dtype=dtype)
    _check_network(subject, folder=folder)
    return subject


def _make_config(architecture: str, values: Mapping[str, Any]) -> PreTrainedConfig:
    """Return transformers' configuration of a network, without the keys that do not change its function."""
    used = {key: value for key, value in values.items() if key not in _UNUSED_KEYS and not key.startswith("_")}
    return CONFIG_MAPPING[architecture].from_dict(used)


@contextmanager
def _reading_config(folder: Path) -> Iterator[None]:
    """Turn what transformers raises for a config.json that does not describe a network into a UserError of one line.

    Every value of config.json reaches code that was not written for wrong ones, so that any exception is possible.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = f"there is no {reason}" if isinstance(error, KeyError) else reason
        raise UserError(f"model folder {folder}: config.json does not describe a model ({reason[:200]})") from error


def _check_sizes(empty: PreTrainedModel, stored: Mapping[str, StoredWeight], *, folder: Path) -> None:
    """Check that the stored weights have the shapes that config.json describes, before memory is allocated for them.

    Args:
        empty: the network on torch's meta device, without memory.
    """
    prefix = f"{empty.base_model_prefix}."
    shapes = {name.removeprefix(prefix): weight.header.shape for name, weight in stored.items()}
    wrong, missing, missing_numbers = [], [], 0
    for name, parameter in empty.named_parameters():
        have, want = shapes.get(name.removeprefix(prefix)), tuple(parameter.shape)
        if have is None:
            missing.append(f"{name} is missing")
            missing_numbers += parameter.numel()
        elif have != want:
            wrong.append(f"{name} is {have}, not {want}")
    # a few may have other names in the file, which transformers knows; what it does not find, it would allocate
    if missing_numbers > sum(_count(shape) for shape in shapes.values()):
        wrong += missing
    _reject_weights(wrong, folder=folder)


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _reject_weights(wrong: list[str], *, folder: Path) -> None:
    """Raise a UserError with the first of the problems, if there are any."""
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"model folder {folder}: the weights do not fit config.json: {wrong[0]}{more}")


def _read_model(folder: Path, *, config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    with _reading_config(folder), _silence_transformers():
        model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            str(folder), config=config, dtype=dtype, attn_implementation=attention, local_files_only=True, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, generation_config=GenerationConfig(),
        )  # fmt: skip
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    wrong += [f"{name} is {tuple(have)}, not {tuple(want)}" for name, have, want in sorted(report["mismatched_keys"])]
    wrong += [f"{name} is unknown" for name in sorted(report["unexpected_keys"]) if not is_ignored(name)]
    _reject_weights(wrong, folder=folder)
    return model


def _check_weights_finite(model: PreTrainedModel, stored: Mapping[str, StoredWeight]) -> None:
    """Raise a UserError that names the first weight with NaN or infinity, and its file."""
    prefix = f"{model.base_model_prefix}."
    paths = {name.removeprefix(prefix): weight.path for name, weight in stored.items()}
    for name, parameter in model.named_parameters():
        if (what := describe_non_finite(parameter)) is not None:
            path = paths.get(name.removeprefix(prefix))
            raise UserError(f"{path or model.name_or_path}: {name}{what}; weights must be finite")


def _check_network(subject: Subject, *, folder: Path) -> None:
    """Run the network on a short sequence; raise a UserError if it cannot be run, or at the first place where it is NaN or infinite."""
    tokens = probe_tokens(subject)
    with _reading_config(folder), torch.no_grad():
        subject.model(tokens, use_cache=False)  # Hugging Face's own forward: what it raises is due to config.json
    if (where := locate_non_finite(subject, tokens)) is not None:
        raise UserError(f"model folder {folder}: the network computes numbers that are not finite: {where}")
    subject.forget_lengths()


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Switch off the progress bar and loading report of transformers: `_read_model` raises an error for everything that is wrong."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
