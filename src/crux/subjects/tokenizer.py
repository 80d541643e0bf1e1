"""The tokenizer of a subject, read from its folder without importing transformers, which takes seconds."""

import os
import string
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from crux.config.errors import UserError
from crux.config.json_files import read_json_object
from crux.subjects.source import find_folder

_PROBE = string.printable + " äß 你好 🙂"
"""A text on which a tokenizer is tried."""


class SubjectTokenizer(NamedTuple):
    """A subject's tokenizer, and the token that separates documents."""

    tokenizer: Tokenizer
    """The tokenizer, with truncation and padding off; call `encode(text, add_special_tokens=False)`."""
    end_of_text: int
    """Id of the end-of-text token."""


def load_tokenizer(source: str | Path) -> SubjectTokenizer:
    """Load the tokenizer of "tiny", of a model folder or of a model on the hub.

    Without tokenizer.json, GPT-2's byte-level BPE is built from vocab.json and merges.txt.

    Raises UserError if these files are missing or corrupt or cannot encode a text, or if no end-of-text token can be found in
    tokenizer_config.json, special_tokens_map.json, config.json or the vocabulary (`<|endoftext|>`).
    """
    folder = find_folder(source)
    path = folder / "tokenizer.json"
    has_file = path.exists() or path.is_symlink()
    tokenizer = _read_tokenizer(path) if has_file else _build_byte_level_bpe(folder)
    return SubjectTokenizer(tokenizer, _find_end_of_text(folder, tokenizer))


def _read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a file, after trying it on a short text."""
    read_json_object(
        path
    )  # explains a broken file better than the Rust library, which also takes the last of equal keys
    with _reading_tokenizer(path):
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        try:
            ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
            tokenizer.decode(ids)
        except Exception:  # a tokenizer without a token for unknown characters may still encode the user's text
            ids = None
    if ids == []:
        raise UserError(f"{path}: the tokenizer encodes letters, digits and punctuation as no tokens at all")
    return tokenizer


@contextmanager
def _reading_tokenizer(path: Path) -> Iterator[None]:
    """Turn what the Rust library raises for a file that is not a tokenizer into a UserError of one line.

    It raises plain Exceptions, and panics, which are BaseExceptions of a class that cannot be imported. A panic also prints its place
    in the Rust code, which is kept off standard error.
    """
    try:
        with _silence_panics():
            yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a tokenizer file ({reason[:200]})") from error


@contextmanager
def _silence_panics() -> Iterator[None]:
    """Keep what a panic prints off standard error; everything else that is written meanwhile is written at the end."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            if b"panicked at" not in (written := file.read()):
                sys.stderr.write(written.decode("utf-8", "replace"))


def _build_byte_level_bpe(folder: Path) -> Tokenizer:
    """Build GPT-2's tokenizer from vocab.json and merges.txt, as older models have it."""
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    config = _read_json(folder / "tokenizer_config.json")
    kind, model = config.get("tokenizer_class"), _read_json(folder / "config.json").get("model_type")
    # others with such files, such as Qwen's, split the text differently
    like_gpt2 = kind in ("GPT2Tokenizer", "GPT2TokenizerFast") or (
        kind in (None, "PreTrainedTokenizerFast") and model == "gpt2"
    )
    if not (vocab.is_file() and merges.is_file() and like_gpt2):
        raise UserError(
            f"model folder {folder}: no tokenizer.json in it; make it from the tokenizer's other files with "
            f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    read_json_object(vocab)
    with _reading_tokenizer(merges):
        tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
    if missing := [byte for byte in ByteLevel.alphabet() if tokenizer.token_to_id(byte) is None]:
        raise UserError(f"{vocab}: not a byte-level vocabulary, {len(missing)} of 256 bytes are missing")
    add_prefix_space = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _find_end_of_text(folder: Path, tokenizer: Tokenizer) -> int:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read_json(folder / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (token_id := _find_token(tokenizer, token)) is not None:
            return token_id
    ids = _read_json(folder / "config.json").get("eos_token_id")
    end_of_text = ids[0] if isinstance(ids, list) and ids else ids
    if type(end_of_text) is int and 0 <= end_of_text < 2**32 and tokenizer.id_to_token(end_of_text) is not None:
        return end_of_text
    if (token_id := tokenizer.token_to_id("<|endoftext|>")) is not None:
        return token_id
    raise UserError(f"model folder {folder}: no end-of-text token; set eos_token in tokenizer_config.json")


def _find_token(tokenizer: Tokenizer, token: str) -> int | None:
    """Return the id of a token; None if there is no such token."""
    try:
        return tokenizer.token_to_id(token)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can name and no token can be
        return None


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if there is no such file; raise a UserError if it is broken."""
    return read_json_object(path) if path.exists() or path.is_symlink() else {}
