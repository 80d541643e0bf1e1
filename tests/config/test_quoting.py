"""The argument that a message suggests for a text with special characters: followed, it gives exactly that text."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from crux.config.quoting import explain_unreadable_override, quote_override


def follow(suggestion: str) -> str:
    """Return the value of `data.path` if the suggestion is typed in a shell, after Hydra's grammar and OmegaConf's interpolation."""
    (argument,) = shlex.split(suggestion)
    override = OverridesParser.create().parse_override(argument)
    assert override.key_or_group == "data.path"
    assert not override.is_sweep_override()
    config = OmegaConf.create({"data": {"path": override.value()}})
    return str(config.data.path)


ODD_PATHS = [
    "data/epoch=999-step=1.txt", "odd dir, with (parens)/a.txt", "a,b", "$HOME/x", "${layer}", "a\\${b}", "it's.txt",
    'say "hi".txt', "both ' and \".txt", "ends\\", 'a\\"b', "é.txt", "日本語/текст.txt", "[1].txt", "{x}.txt", "a#b",
    "a;b|c&d", "1e5", "007", "true", "null", " leading", "trailing ", "range(1,3)", "glob(*)", "a:b", "a@b", "-x", "*.txt",
    "`ls`", "a\tb", "\\", "!x", "a~b",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD_PATHS)
def test_a_followed_suggestion_gives_the_path(path: str) -> None:
    assert follow(quote_override("data.path", path)) == path


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12))
def test_any_text_can_be_quoted(text: str) -> None:
    if text != "~" and not text.startswith("~/"):
        assert follow(quote_override("data.path", text)) == text


def test_a_home_folder_is_written_out() -> None:
    """The shell leaves `~` after `data.path=` as it is."""
    message = explain_unreadable_override("data.path=~/my texts") or ""
    assert follow(message.partition("; write ")[2]) == f"{Path.home()}/my texts"


def test_plain_paths_stay_as_they_are() -> None:
    assert quote_override("data.path", "texts/a.txt") == "data.path=texts/a.txt"


@pytest.mark.parametrize("word", ["data.path=a=b", "layer==3", "sae.start_from=x(1)/sae", "data.path=é"])
def test_the_message_names_the_override_and_how_to_write_it(word: str) -> None:
    key, _, value = word.partition("=")
    message = explain_unreadable_override(word) or ""
    assert message.startswith(f"{key}: {value} has characters that need quotes")
    (argument,) = shlex.split(message.partition("; write ")[2])
    assert OverridesParser.create().parse_override(argument).value() == value
