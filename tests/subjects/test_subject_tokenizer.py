"""Loading a subject's tokenizer."""

import json
from pathlib import Path

import pytest

from crux.config.errors import UserError
from crux.subjects.tokenizer import load_tokenizer
from tests.support.tiny_subjects import write_tokenizer


def test_ids_and_end_of_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "t7"}}))
    tokenizer, end_of_text = load_tokenizer(tmp_path)
    assert end_of_text == 7
    assert tokenizer.get_vocab_size() == 64
    assert tokenizer.token_to_id("t5") == 5


def test_end_of_text_from_config_json(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert load_tokenizer(tmp_path).end_of_text == 3


def test_error_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json in it"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a JSON file, or a broken one"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer file"):
        load_tokenizer(tmp_path)
