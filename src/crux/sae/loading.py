"""Loading the subject and the tokenised text that the sections `model` and `data` describe."""

import sys
from pathlib import Path

import torch

from crux.config.errors import UserError
from crux.config.files import write_text
from crux.config.schema import Data, Files, HubData, LanguageModel
from crux.config.targets import call_function
from crux.sae.options import model_source
from crux.subjects.finite import locate_non_finite, probe_tokens
from crux.subjects.load import load_subject
from crux.subjects.shape import read_shape
from crux.subjects.source import find_folder
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.text import sources
from crux.text.packaged import SOURCES
from crux.text.sources import PackagedText, Source
from crux.text.token_file import default_cache
from crux.text.tokens import Tokens, prepare_tokens


def load_model(model: LanguageModel, *, device: torch.device, dtype: torch.dtype) -> Subject:
    """Load the frozen network, by the user's function if the options name one."""
    if model._target_ is not None:
        subject = call_function(model._target_, model, key="model._target_", device=device, dtype=dtype)
        if not isinstance(subject, Subject):
            raise UserError(f"model._target_={model._target_}: returned a {type(subject).__name__}, not a Subject")
        if (where := locate_non_finite(subject, probe_tokens(subject))) is not None:
            raise UserError(
                f"model._target_={model._target_}: the network computes numbers that are not finite: {where}"
            )
        return subject
    return load_subject(model_source(model), process_weights=model.process_weights, device=device, dtype=dtype)


def text_source(data: Data) -> Source:
    """Return the source of the text."""
    match data:
        case Files(path=str(path)):
            return sources.TextFiles(Path(path), data.column, data.split, data.held_out_split)
        case HubData():
            return sources.HubDataset(
                data.name, data.config, data.split, data.revision, data.column, data.held_out_split
            )
        case _:
            return PackagedText(SOURCES)


def load_tokens(data: Data, *, model: LanguageModel, cache: str | None) -> Tokens:
    """Return the text as tokens of the subject, from the cache if it has been tokenised before, and print a report on it.

    This needs the subject's tokenizer and the size of its embedding, but not its weights.

    Raises:
        UserError: if the text cannot be read or is too short, or has tokens that the subject has no embedding for.
    """
    source = model_source(model)
    tokenizer, end_of_text = load_tokenizer(source)
    tokens = prepare_tokens(
        text_source(data),
        tokenizer=tokenizer,
        eot=end_of_text,
        # a function of the user's may load a network of any size
        d_vocab=read_shape(find_folder(source)).d_vocab if model._target_ is None else None,
        max_tokens=data.max_tokens,
        held_out_tokens=data.held_out_tokens,
        min_tokens=2 * model.context,
        cache=Path(cache) if cache is not None else default_cache(),
    )
    if not isinstance(text_source(data), PackagedText):
        for line in tokens.report.lines():
            print(line, file=sys.stderr)
    return tokens


def check_embedding(tokens: Tokens, subject: Subject) -> None:
    """Raise UserError if a network that the user's own function has loaded has no embedding for some of the tokens."""
    if tokens.report.largest_id >= subject.d_vocab:
        raise UserError(
            f"the text has the token id {tokens.report.largest_id}, but the model's embedding has {subject.d_vocab:,} tokens"
        )


def write_text_report(tokens: Tokens, folder: Path) -> None:
    """Write text.json, the report on the text, into a run folder."""
    write_text(folder / "text.json", tokens.report.to_json() + "\n")
