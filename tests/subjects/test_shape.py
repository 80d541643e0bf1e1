"""Shapes read from config.json."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crux.config.errors import UserError
from crux.subjects.shape import Shape, read_shape
from tests.support.tiny_subjects import D_MODEL, D_VOCAB, N_CTX, N_LAYERS

_GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024}


def _write_config(tmp_path: Path, config: object) -> Path:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


def test_gpt2_key_names(tmp_path: Path) -> None:
    config = {**_GPT2, "architectures": ["GPT2LMHeadModel"]}
    assert read_shape(_write_config(tmp_path, config)) == Shape(12, 768, 50257, 1024, "gpt2", resid_mid=True, d_z=768)


@pytest.mark.parametrize(
    ("kind", "architecture", "resid_mid", "d_z"),
    [  # the tiny Gemmas have 4 heads of width 12
        ("gpt2", "gpt2", True, 32), ("gpt_neox", "gpt_neox", False, 32), ("gpt_neox_sequential", "gpt_neox", True, 32),
        ("llama", "llama", True, 32), ("gemma", "gemma", True, 48), ("gemma2", "gemma2", True, 48),
        ("gemma3", "gemma3_text", True, 48),
    ],
)  # fmt: skip
def test_configs_written_by_transformers(
    subject_folder: Callable[[str], Path], kind: str, architecture: str, resid_mid: bool, d_z: int
) -> None:
    assert read_shape(subject_folder(kind)) == Shape(N_LAYERS, D_MODEL, D_VOCAB, N_CTX, architecture, resid_mid, d_z)


def test_hook_width(tmp_path: Path) -> None:
    llama = {
        "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "vocab_size": 10,
        "max_position_embeddings": 8,
    }  # fmt: skip
    # 4 heads, each of width 64 / 4 if head_dim is not given; of width 256 in Gemma
    for given, d_z in [({}, 64), ({"head_dim": None}, 64), ({"head_dim": 24}, 96), ({"model_type": "gemma"}, 1024)]:
        shape = read_shape(_write_config(tmp_path, {**llama, **given}))
        assert (shape.hook_width("z"), shape.hook_width("resid_pre"), shape.hook_width("mlp_out")) == (d_z, 64, 64)
    with pytest.raises(UserError, match=r"num_attention_heads is 0, not a positive whole number of a possible size$"):
        read_shape(_write_config(tmp_path, {**llama, "num_attention_heads": 0}))
    with pytest.raises(UserError, match=r"head_dim is '24', not a positive whole number of a possible size$"):
        read_shape(_write_config(tmp_path, {**llama, "head_dim": "24"}))


def test_error_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder$"):
        read_shape(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config\.json in it"):
        read_shape(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: not a JSON file, or a broken one"):
        read_shape(_write_config(tmp_path, '{"n_layer": 12,'))
    with pytest.raises(UserError, match=r"a JSON object is needed, this is a list$"):
        read_shape(_write_config(tmp_path, []))
    with pytest.raises(UserError, match=r"model_type 'bert' is not supported; allowed are gpt2, gpt_neox, llama"):
        read_shape(_write_config(tmp_path, {**_GPT2, "model_type": "bert"}))
    with pytest.raises(UserError, match=r"GPT2ForSequenceClassification is not a causal language model"):
        read_shape(_write_config(tmp_path, {**_GPT2, "architectures": ["GPT2ForSequenceClassification"]}))
    with pytest.raises(UserError, match=r"n_layer is '12', not a positive whole number of a possible size$"):
        read_shape(_write_config(tmp_path, {**_GPT2, "n_layer": "12"}))
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a JSON file, or a broken one"):
        read_shape(tmp_path)
