"""The tokenizer of a subject, read from its folder's tokenizer.json without importing transformers, which takes seconds."""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.subjects.source import find_folder


class SubjectTokenizer(NamedTuple):
    """A subject's tokenizer, and the token that separates documents."""

    tokenizer: Tokenizer
    """The tokenizer, with truncation and padding off; call `encode(text, add_special_tokens=False)`."""
    end_of_text: int
    """Id of the end-of-text token."""


def load_tokenizer(source: str | Path) -> SubjectTokenizer:
    """Load the tokenizer of "tiny", of a model folder or of a model on the hub.

    Raises UserError if tokenizer.json is missing or corrupt, or if no end-of-text token can be found in
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
    return SubjectTokenizer(tokenizer, _find_end_of_text(folder, tokenizer))


def _find_end_of_text(folder: Path, tokenizer: Tokenizer) -> int:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read_json(folder / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (token_id := tokenizer.token_to_id(token)) is not None:
            return token_id
    ids = _read_json(folder / "config.json").get("eos_token_id")
    end_of_text = ids[0] if isinstance(ids, list) and ids else ids
    if isinstance(end_of_text, int) and 0 <= end_of_text < tokenizer.get_vocab_size():
        return end_of_text
    if (token_id := tokenizer.token_to_id("<|endoftext|>")) is not None:
        return token_id
    raise UserError(f"model folder {folder}: no end-of-text token; set eos_token in tokenizer_config.json")


def _read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; return {} if there is no such file, or if its JSON is not an object.

    Raises:
        UserError: if the file is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    return content if isinstance(content, dict) else {}
