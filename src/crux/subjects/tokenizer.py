"""The tokenizer of a subject, read from its folder's tokenizer.json without the model library."""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.subjects.source import find_folder


class SubjectTokenizer(NamedTuple):
    """A subject's tokenizer, and the token that keeps documents apart."""

    tokenizer: Tokenizer
    """Without truncation and padding; call `encode(text, add_special_tokens=False)`."""
    end_of_text: int
    """Id of the end-of-text token."""


def load_tokenizer(source: str | Path) -> SubjectTokenizer:
    """The tokenizer of "tiny", of a model folder or of a hub name.

    Raises UserError where tokenizer.json is missing or corrupt, or where no end-of-text token can be found in
    tokenizer_config.json, special_tokens_map.json, config.json or the vocabulary (`<|endoftext|>`).
    """
    folder = find_folder(source)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"model folder {folder}: no tokenizer.json in it")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError(f"{path}: not a tokenizer file ({str(error).splitlines()[0]})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return SubjectTokenizer(tokenizer, _end_of_text(folder, tokenizer))


def _end_of_text(folder: Path, tokenizer: Tokenizer) -> int:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read(folder / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (found := tokenizer.token_to_id(token)) is not None:
            return found
    ids = _read(folder / "config.json").get("eos_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    if isinstance(first, int) and 0 <= first < tokenizer.get_vocab_size():
        return first
    if (found := tokenizer.token_to_id("<|endoftext|>")) is not None:
        return found
    raise UserError(f"model folder {folder}: no end-of-text token; set eos_token in tokenizer_config.json")


def _read(path: Path) -> dict[str, object]:
    """A JSON object, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    return content if isinstance(content, dict) else {}
