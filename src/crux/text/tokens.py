"""Text to tokens, once: a memory-mapped training stream and a held-out one, apart by document."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.text.filling import fill
from crux.text.sources import Packaged, Source, describe, fingerprint
from crux.text.token_file import dtype_for, new_token_file, open_token_file

VERSION = 1  # of what `prepare_tokens` makes of its arguments; goes into the key
EVERY = 20  # one document in so many is held out
FINER = (10, 5, 2)  # tried in turn where a small text leaves too little held out


class Tokens(NamedTuple):
    """Two streams of tokens with no document in common; in each, every text is followed by the end-of-text id."""

    train: UInt[np.ndarray, "train"]
    """To train on; memory-mapped, uint16 where the vocabulary fits, else uint32."""
    held_out: UInt[np.ndarray, "held_out"]
    """To judge on; likewise."""
    train_documents: int
    """Documents in `train`; the last may be cut by `max_tokens`."""
    held_out_documents: int
    """Documents in `held_out`; likewise."""
    train_bytes: int | None
    """UTF-8 bytes of the text in `train`, end-of-text marks not counted; None where it came pre-tokenised."""
    held_out_bytes: int | None
    """Likewise for `held_out`: bits per byte = nats · tokens / bytes / ln 2."""
    every: int | None
    """One in `every` documents, by the hash of its content, is held out; None: the source has its own list."""
    path: Path
    """The file in the cache."""


def prepare_tokens(
    source: Source, *, tokenizer: Tokenizer, eot: int, max_tokens: int | None, held_out_tokens: int | None,
    min_tokens: int, cache: Path,
) -> Tokens:  # fmt: skip
    """The source's tokens, from the cache if they are there, else made and put there.

    A document is held out by its content alone: where blake2b of it is divisible by `every` (20), so that equal ones
    fall on the same side. A text too small for that is split more finely (10, 5, 2); `Tokens.every` says how. The
    packaged text has its own list. Whatever ids come pre-tokenised are joined as they are, nothing between them.

    Args:
        source: where the text comes from.
        tokenizer: its truncation, padding and special tokens are not applied; marks in a text are text.
        eot: id of the end-of-text token.
        max_tokens: length of the training stream at most; None: all there is.
        held_out_tokens: length of the held-out stream at most; None: all that was come by.
        min_tokens: what each of the two must have.
        cache: the folder; `token_file.default_cache()` is the usual one.

    Raises:
        UserError: the mistakes of the sources; too short; ids beyond the vocabulary; a cache that cannot be written.
    """
    vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    assert 0 <= eot < vocab_size, "the end-of-text token is not in the vocabulary"
    own = Tokenizer.from_str(tokenizer.to_str())  # a copy: the caller's settings stay as they are
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True
    for name, most in (("max_tokens", max_tokens), ("held_out_tokens", held_out_tokens)):
        if most is not None and most < min_tokens:
            raise UserError(f"data.{name}={most:,} is too few: at least {min_tokens:,} are needed")
    limits = {"train": max_tokens, "held_out": held_out_tokens}
    content, model = fingerprint(source), own.to_str()
    tokens = None
    for every in (None,) if isinstance(source, Packaged) else (EVERY, *FINER):
        key = json.dumps([VERSION, content, model, eot, limits, every])
        path = cache / "tokens" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.safetensors"
        tokens = _opened(path)
        if tokens is None:
            with new_token_file(path, dtype=dtype_for(vocab_size)) as writer:
                fill(writer, source, tokenizer=own, eot=eot, limits=limits, every=every)
            tokens = _opened(path)
            assert tokens is not None
        if len(tokens.train) + len(tokens.held_out) == 0:
            raise UserError(f"{describe(source)} is empty: no document with any text")
        if len(tokens.held_out) >= min_tokens or len(tokens.train) + len(tokens.held_out) < 2 * min_tokens:
            break
    assert tokens is not None
    if min(len(tokens.train), len(tokens.held_out)) < min_tokens:
        raise UserError(
            f"{describe(source)} is too short: {len(tokens.train):,} tokens to train on and {len(tokens.held_out):,} "
            f"held out, at least {min_tokens:,} of each are needed"
        )
    return tokens


def _opened(path: Path) -> Tokens | None:
    if (found := open_token_file(path)) is None:
        return None
    train, held_out, metadata = found
    about = json.loads(metadata["crux"])
    documents, sizes = about["documents"], about["bytes"] if about["text"] else {}
    return Tokens(
        train, held_out, documents["train"], documents["held_out"], sizes.get("train"), sizes.get("held_out"),
        about["every"], path,
    )  # fmt: skip
