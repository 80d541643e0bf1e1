"""Load a subject from a Hugging Face model folder: safetensors only, nothing unpickled, no code from the folder run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from crux.config.errors import UserError
from crux.subjects.processing import process_weights as process
from crux.subjects.shape import read_config, read_shape
from crux.subjects.source import find_folder
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.subjects.weight_files import check_weights

__all__ = ["load_subject", "load_tokenizer"]

_IGNORED_BUFFERS = re.compile(r"\.(masked_bias|inv_freq)$|\.(attn|attention)\.bias$")
"""Names of causal masks and rotary frequencies, which old checkpoints contain besides the weights."""


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
    supported, or the weights are missing, corrupt or do not fit config.json.
    """
    folder = find_folder(source)
    shape = read_shape(folder)
    if "quantization_config" in read_config(folder):
        raise UserError(f"model folder {folder}: quantised weights are not supported")
    check_weights(folder)
    # SDPA cannot cap attention logits, which Gemma 2 does
    attention = "eager" if shape.architecture == "gemma2" else "sdpa"
    model = _read_model(folder, dtype=torch.float32 if process_weights else dtype, attention=attention)
    if process_weights:
        process(model)
    return Subject(model, name=str(source), process_weights=process_weights).to(device=device, dtype=dtype)


def _read_model(folder: Path, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    with _silence_transformers():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                str(folder), dtype=dtype, attn_implementation=attention, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"model folder {folder}: config.json does not describe a model ({reason})") from error
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    wrong += [f"{name} is {tuple(have)}, not {tuple(want)}" for name, have, want in sorted(report["mismatched_keys"])]
    wrong += [f"{name} is unknown" for name in sorted(report["unexpected_keys"]) if not _IGNORED_BUFFERS.search(name)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"model folder {folder}: the weights do not fit config.json: {wrong[0]}{more}")
    return model


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
