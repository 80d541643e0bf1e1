"""Messages about mistyped command lines: arguments that Hydra's grammar rejects, and the choices that are suggested and listed."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from crux.config.files import write_text
from crux.config.messages import (
    MAX_LISTED,
    explain_composition_error,
    explain_unknown_option,
    explain_user_error,
    suggest_nearest,
)
from crux.config.registry import register


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def explain_override(override: str) -> str:
    """Return the message about an argument that Hydra's grammar rejects."""
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_override(override)
    return explain_composition_error(caught.value, overrides=["-m", "layer=6", override])


REJECTED_VALUES = [
    "outputs/sweeps/mine/debug=limit,layer=2,loss=local/sae",
    "my (texts)/",
    "my {texts}/",
    "my[1].txt",
    "it's.txt",
    'a"b.txt',
    "a#b",
    "a;b",
    "é.txt",
    "<toy run>",
]


@pytest.mark.parametrize("value", REJECTED_VALUES)
def test_a_value_with_special_characters_is_answered_with_the_quoted_argument(value: str) -> None:
    message = explain_override(f"data.path={value}")
    assert message.startswith(f"data.path: {value} has characters that need quotes")
    (argument,) = shlex.split(message.partition("; write ")[2])  # what the shell passes on
    override = OverridesParser.create().parse_override(argument)
    assert (override.key_or_group, override.value()) == ("data.path", value)


@pytest.mark.parametrize("value", ["my texts/", "C:/texts", "a:b", "a@b", "50%", "a+b"])
def test_spaces_and_colons_need_no_quotes_of_hydra(value: str) -> None:
    assert OverridesParser.create().parse_override(f"data.path={value}").value() == value


@pytest.mark.parametrize("value", ["[1,2", "{a:1", "'text", '"text'])
def test_brackets_and_quotes_that_do_not_match_are_named(value: str) -> None:
    assert explain_override(f"ks={value}").startswith(f"ks: the brackets or quotes of {value} do not match")


@pytest.mark.parametrize("argument", ["layer", "layer 6", "la yer=6"])
def test_an_argument_that_is_no_key_and_value_is_named(argument: str) -> None:
    assert explain_override(argument) == f"{argument}: cannot be read; write key=value"


def test_a_choice_that_begins_with_the_word_is_nearest() -> None:
    choices = ["toy/sae", "toy/phase_diagram_paper", "toy/phase_diagram"]
    assert suggest_nearest("toy/phase", choices) == "did you mean toy/phase_diagram? "
    assert suggest_nearest("toy/sea", choices) == "did you mean toy/sae? "
    assert suggest_nearest("to", choices) == ""  # too short to mean one of them


def test_an_option_of_another_group_is_named() -> None:
    assert "did you mean sweeps=pareto?" in explain_unknown_option("experiment", "pareto")
    assert "did you mean sae=topk?" in explain_unknown_option("loss", "topk")


def test_a_long_list_of_options_is_cut_and_a_short_one_is_whole() -> None:
    assert explain_unknown_option("loss", "nope").endswith("allowed are e2e, e2e_ds, fisher, kl_finetune, local")
    listed = explain_unknown_option("experiment", "nope").partition("allowed are ")[2]
    assert listed.count(", ") == MAX_LISTED
    assert "`--help experiment` lists all" in listed


def test_a_folder_in_the_place_of_a_file_that_is_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path / "text.json", "")
    assert explain_user_error(caught.value, overrides=()) == f"{tmp_path / 'text.json'}: Is a directory"
