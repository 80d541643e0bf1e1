"""Tokenise a source once, into memory-mapped training tokens and held-out tokens with no document in common."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.text.sources import PackagedText, Source, describe_source, fingerprint_source
from crux.text.token_file import open_token_file, token_dtype, write_token_file
from crux.text.tokenise import tokenise_source

CACHE_VERSION = 1  # part of the cache's key; changes whenever the same arguments give other tokens
HOLD_OUT_EVERY = 20  # one document in 20 is held out
FINER_SPLITS = (10, 5, 2)  # the same, tried in this order if one in 20 leaves too little of a small text held out


class Tokens(NamedTuple):
    """Training and held-out tokens, with no document in common. Every text is followed by the end-of-text id."""

    train: UInt[np.ndarray, "train"]
    """Training tokens; memory-mapped, uint16 if the vocabulary fits, else uint32."""
    held_out: UInt[np.ndarray, "held_out"]
    """Tokens for evaluation, of the same type as `train`."""
    train_documents: int
    """Number of documents in `train`; `max_tokens` may have cut the last one."""
    held_out_documents: int
    """Number of documents in `held_out`; `held_out_tokens` may have cut the last one."""
    train_bytes: int | None
    """UTF-8 bytes of the text in `train` without end-of-text marks; None if the source was already tokenised."""
    held_out_bytes: int | None
    """The same for `held_out`: bits per byte = (nats per token) · tokens / bytes / ln 2."""
    every: int | None
    """One document in `every`, by the hash of its content, is held out; None: the source lists its held-out documents."""
    path: Path
    """File in the cache."""


def prepare_tokens(
    source: Source, *, tokenizer: Tokenizer, eot: int, max_tokens: int | None, held_out_tokens: int | None,
    min_tokens: int, cache: Path,
) -> Tokens:  # fmt: skip
    """Return the source's tokens from the cache; if they are not there, tokenise the source first.

    A document is held out if blake2b of its content is divisible by `every` = 20, so that equal documents are either all held
    out or all trained on. If that leaves too little text held out, 10, 5 and 2 are tried; `Tokens.every` is the value that was used. The
    packaged text has a list of held-out documents instead. Documents that are already token ids are joined unchanged,
    with nothing between them.

    Args:
        source: source of the text.
        tokenizer: its truncation, padding and special tokens are not applied: `<|endoftext|>` in a text is plain text.
        eot: id of the end-of-text token.
        max_tokens: largest number of training tokens; None: no limit.
        held_out_tokens: largest number of held-out tokens; None: no limit.
        min_tokens: smallest number of training tokens and of held-out tokens.
        cache: folder of the cache, usually `token_file.default_cache()`.

    Raises:
        UserError: for an error of the source, a text that is too short, ids that are not in the vocabulary, or a cache
            that cannot be written.
    """
    vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    assert 0 <= eot < vocab_size, "the end-of-text token is not in the vocabulary"
    plain = Tokenizer.from_str(tokenizer.to_str())  # a copy, so that the caller's tokenizer keeps its settings
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    for name, limit in (("max_tokens", max_tokens), ("held_out_tokens", held_out_tokens)):
        if limit is not None and limit < min_tokens:
            raise UserError(f"data.{name}={limit:,} is too few: at least {min_tokens:,} are needed")
    limits = {"train": max_tokens, "held_out": held_out_tokens}
    content, model = fingerprint_source(source), plain.to_str()
    tokens = None
    # the packaged text lists its held-out documents, so that there is nothing to choose
    splits = (None,) if isinstance(source, PackagedText) else (HOLD_OUT_EVERY, *FINER_SPLITS)
    for every in splits:
        key = json.dumps([CACHE_VERSION, content, model, eot, limits, every])
        path = cache / "tokens" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.safetensors"
        tokens = _open_tokens(path)
        if tokens is None:
            with write_token_file(path, dtype=token_dtype(vocab_size)) as writer:
                tokenise_source(writer, source, tokenizer=plain, eot=eot, limits=limits, every=every)
            tokens = _open_tokens(path)
            assert tokens is not None
        if len(tokens.train) + len(tokens.held_out) == 0:
            raise UserError(f"{describe_source(source)} is empty: it has no document with any text")
        # enough is held out, or the text is too short for any split
        if len(tokens.held_out) >= min_tokens or len(tokens.train) + len(tokens.held_out) < 2 * min_tokens:
            break
    assert tokens is not None
    if min(len(tokens.train), len(tokens.held_out)) < min_tokens:
        raise UserError(
            f"{describe_source(source)} is too short: {len(tokens.train):,} tokens to train on and {len(tokens.held_out):,} "
            f"held out, at least {min_tokens:,} of each are needed"
        )
    return tokens


def _open_tokens(path: Path) -> Tokens | None:
    if (opened := open_token_file(path)) is None:
        return None
    train, held_out, metadata = opened
    stored = json.loads(metadata["crux"])
    documents = stored["documents"]
    n_bytes = stored["bytes"] if stored["text"] else {}  # unknown if documents came as token ids
    return Tokens(
        train, held_out, documents["train"], documents["held_out"], n_bytes.get("train"), n_bytes.get("held_out"),
        stored["every"], path,
    )  # fmt: skip
