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


def test_byte_level_bpe_of_two_files_gives_the_tokens_of_tokenizer_json(tmp_path: Path) -> None:
    packaged = load_tokenizer("tiny")
    parts = json.loads(packaged.tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parts["vocab"]))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in parts["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    text = "Call me Ishmael.  Some years ago-- never mind\n\nhow long: 白鲸 🐋"
    built = load_tokenizer(tmp_path)
    assert built.tokenizer.encode(text).ids == packaged.tokenizer.encode(text).ids
    assert built.tokenizer.decode(built.tokenizer.encode(text).ids) == text
    assert built.end_of_text == packaged.end_of_text
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(UserError, match=r"no tokenizer\.json in it; make it .*save_pretrained"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="not a byte-level vocabulary, 254 of 256 bytes are missing"):
        load_tokenizer(tmp_path)
