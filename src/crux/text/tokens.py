"""Tokenise a source once, into memory-mapped training tokens and held-out tokens with no document in common."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.text.paths import make_length_error
from crux.text.report import TextReport
from crux.text.sources import Source, describe_files, describe_source, fingerprint_source
from crux.text.token_file import open_token_file, token_dtype, write_token_file
from crux.text.tokenise import tokenise_source

CACHE_VERSION = 4  # part of the cache's key; changes whenever the same arguments give other tokens
HOLD_OUT_EVERY = 20  # one document in 20 is held out
MIN_FILES = 2  # if whole files are held out, then so many
FINER_SPLITS = (10, 5, 2)  # the same, tried in this order if one in 20 leaves too little of a small text held out


class Tokens(NamedTuple):
    """Training and held-out tokens, with no document in common. Every text is followed by the end-of-text id."""

    train: UInt[np.ndarray, "train"]
    """Training tokens; memory-mapped, uint16 if the vocabulary fits, else uint32."""
    held_out: UInt[np.ndarray, "held_out"]
    """Tokens for evaluation, of the same type as `train`."""
    report: TextReport
    """Documents, bytes and files of each side, and what was left out."""
    path: Path
    """File in the cache."""


def prepare_tokens(
    source: Source, *, tokenizer: Tokenizer, eot: int, d_vocab: int | None, max_tokens: int | None,
    held_out_tokens: int | None, min_tokens: int, cache: Path,
) -> Tokens:  # fmt: skip
    """Return the source's tokens from the cache; if they are not there, tokenise the source first.

    If the source's owner has divided it, by splits or by a list, so is the text. Otherwise a document is held out if blake2b of its
    content is divisible by `every` = 20, so that equal documents are either all held out or all trained on. If that leaves too
    little text held out, 10, 5 and 2 are tried; `Tokens.report.every` is the value that was used. Documents that are already token
    ids are joined unchanged, with nothing between them. If a side has more tokens than its limit, it is a sample of all its
    documents, and of all pieces of long documents, chosen by hash.

    Args:
        source: source of the text.
        tokenizer: its truncation, padding and special tokens are not applied: `<|endoftext|>` in a text is plain text.
        eot: id of the end-of-text token.
        d_vocab: number of tokens that the model has an embedding for; None: unknown, those of the tokenizer.
        max_tokens: largest number of training tokens; None: no limit.
        held_out_tokens: largest number of held-out tokens; None: no limit.
        min_tokens: smallest number of training tokens and of held-out tokens.
        cache: folder of the cache, usually `token_file.default_cache()`.

    Raises:
        UserError: for an error of the source, a text that is too short, ids that have no embedding, or a cache that cannot be
            written.
    """
    vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    assert 0 <= eot < vocab_size, "the end-of-text token is not in the vocabulary"
    if d_vocab is not None and eot >= d_vocab:
        raise UserError(
            f"the end-of-text token of the tokenizer, {tokenizer.id_to_token(eot)!r}, has the id {eot}, but the model's embedding has "
            f"{d_vocab:,} tokens"
        )
    plain = Tokenizer.from_str(tokenizer.to_str())  # a copy, so that the caller's tokenizer keeps its settings
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    for name, limit in (("max_tokens", max_tokens), ("held_out_tokens", held_out_tokens)):
        if limit is not None and limit < min_tokens:
            raise UserError(f"data.{name}={limit:,} is too few: at least {min_tokens:,} are needed")
    limits = {"train": max_tokens, "held_out": held_out_tokens}
    content, model = fingerprint_source(source), plain.to_str()
    description = describe_files(source)
    tokens = None
    for every in (None,) if description.divided else (HOLD_OUT_EVERY, *FINER_SPLITS):
        key = json.dumps([CACHE_VERSION, content, model, eot, limits, every])
        path = cache / "tokens" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.safetensors"
        tokens = _open_tokens(path)
        if tokens is None or (d_vocab is not None and tokens.report.largest_id >= d_vocab):  # made for a larger model
            with write_token_file(path, dtype=token_dtype(max(vocab_size, d_vocab or 0))) as writer:
                tokenise_source(writer, source, tokenizer=plain, eot=eot, d_vocab=d_vocab, limits=limits, every=every)
            tokens = _open_tokens(path)
            assert tokens is not None
        if len(tokens.train) + len(tokens.held_out) == 0:
            raise UserError(f"{describe_source(source)} is empty: it has no document with any text")
        enough = len(tokens.held_out) >= min_tokens and (
            not description.whole_files or tokens.report.held_out.files >= MIN_FILES
        )
        # enough is held out, or the text is too short for any split, or its owner has divided it
        if enough or len(tokens.train) + len(tokens.held_out) < 2 * min_tokens or tokens.report.every is None:
            break
    assert tokens is not None
    if min(len(tokens.train), len(tokens.held_out)) < min_tokens:
        length = f"{len(tokens.train):,} tokens to train on and {len(tokens.held_out):,} held out"
        if tokens.report.every is not None and len(tokens.train) + len(tokens.held_out) >= 2 * min_tokens:
            raise UserError(
                f"{describe_source(source)} has too few different documents: {length}, at least {min_tokens:,} of each are needed, and "
                "equal documents are on the same side"
            )
        raise make_length_error(describe_source(source), length, min_tokens=min_tokens)
    return tokens


def _open_tokens(path: Path) -> Tokens | None:
    if (opened := open_token_file(path)) is None:
        return None
    train, held_out, metadata = opened
    return Tokens(train, held_out, TextReport.from_json(metadata["crux"]), path)
