"""Broken model folders: rejected in one line that names the file, before memory is allocated; numbers that are not finite are located."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crux.config.errors import UserError
from crux.subjects.finite import locate_non_finite, probe_tokens
from crux.subjects.load import load_subject
from crux.subjects.source import find_folder
from crux.subjects.tokenizer import load_tokenizer
from tests.support.tiny_subjects import write_tokenizer


@pytest.fixture
def folder(subject_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny GPT-2 that a test may damage."""
    return Path(shutil.copytree(subject_folder("gpt2"), tmp_path / "model"))


@pytest.fixture
def llama(subject_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(subject_folder("llama"), tmp_path / "llama"))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weight(folder: Path, name: str, edit: Callable[[Tensor], Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = edit(weights[name].clone()).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def assert_rejected(folder: Path, message: str, *, process_weights: bool = False) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_subject(folder, process_weights=process_weights)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "no_such_function"}, "config.json does not describe a model"),
        ({"activation_function": 3}, "config.json does not describe a model .*activation_function"),
        ({"layer_norm_epsilon": "small"}, "config.json does not describe a model .*layer_norm_epsilon"),
        ({"resid_pdrop": [1]}, "config.json does not describe a model"),
        ({"n_head": -4}, "n_head is -4, not a positive whole number"),
        (
            {"n_embd": 10**30},
            "n_embd is 1000000000000000000000000000000, not a positive whole number of a possible size",
        ),
        ({"n_layer": 10**9}, "says 1,000,000,000 layers, and there are"),
        ({"vocab_size": 10**12}, r"wte\.weight is \(64, 32\), not \(1000000000000, 32\)"),
        ({"n_inner": 10**12}, r"c_fc\.weight is \(32, 128\), not \(32, 1000000000000\) and \d+ more"),
        ({"n_positions": 10**10}, r"wpe\.weight is \(48, 32\), not \(10000000000, 32\)"),
        ({"hidden_size": 64}, "hidden_size=64 and n_embd=32 mean the same"),
        ({"add_cross_attention": True}, "is missing and"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
        ({"model_type": {"a": 1}}, "model_type {'a': 1} is not supported"),
        ({"architectures": [None]}, "None is not a causal language model"),
        ({"quantization_config": {}}, "quantised weights are not supported"),
    ],
)
def test_config_that_does_not_describe_the_model(folder: Path, changes: dict[str, Any], message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    edit_config(folder, **changes)
    assert_rejected(folder, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in kB: less than 1 GB was needed


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**12}, {"id2label": {"0": "a"}, "num_labels": 7}, {"quantization_config": None}, {"dtype": "no_such_type"},
        {"auto_map": {"AutoConfig": "evil.Config"}}, {"attn_implementation": "someone/kernel"}, {"_attn_implementation": "x"},
        {"unknown": {"a": [1]}}, {"return_dict": False}, {"use_cache": "yes"}, {"output_hidden_states": True},
    ],
)  # fmt: skip
def test_keys_that_do_not_change_the_function(folder: Path, changes: dict[str, Any]) -> None:
    want = load_subject(folder, process_weights=False).clean(torch.arange(9)[None], capture=[]).final
    edit_config(folder, **changes)
    found = load_subject(folder, process_weights=False).clean(torch.arange(9)[None], capture=[]).final
    assert want is not None
    assert found is not None
    torch.testing.assert_close(found, want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda w: w.index_put_((torch.tensor(3), torch.tensor(5)), torch.tensor(torch.nan)),
            r"\[3, 5\] is nan, 1 of 4,096 are",
        ),
        (lambda w: w / 0, r"\[0, 0\] is -?inf, 4,096 of 4,096 are not finite; weights must be finite"),
        (lambda w: w.double() * 1e300, r"\[0, 0\] is -?inf"),
        (lambda w: w.to(torch.complex64), "is of type C64; weights must be floating-point numbers"),
        (lambda w: w.to(torch.int32), "is of type I32; weights must be"),
        (lambda w: w > 0, "is of type BOOL; weights must be"),
        (lambda w: w.to(torch.float8_e5m2), "is of type F8_E5M2; weights must be"),
        (lambda w: w.T, r"is \(128, 32\), not \(32, 128\)"),
    ],
)
@pytest.mark.parametrize("process_weights", [False, True])
def test_weights_that_are_not_finite_numbers(
    folder: Path, edit: Callable[[Tensor], Tensor], message: str, process_weights: bool
) -> None:
    """The message names the tensor, and the file or folder."""
    edit_weight(folder, "transformer.h.1.mlp.c_fc.weight", edit)
    assert_rejected(folder, rf"transformer\.h\.1\.mlp\.c_fc\.weight ?{message}", process_weights=process_weights)


def test_weights_in_several_files(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][7] = -torch.inf
    (folder / "model.safetensors").unlink()
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(weights))}
    for part in set(files.values()):
        save_file({n: w for n, w in weights.items() if files[n] == part}, folder / part, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    file = files["transformer.ln_f.bias"]
    assert_rejected(folder, rf"model/{file}: transformer\.ln_f\.bias\[7\] is -inf, 1 of 32 are not finite")
    save_file(load_file(folder / "part-0.safetensors"), folder / "part-2.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": files | {"more": "part-2.safetensors"}}))
    assert_rejected(folder, r"part-2\.safetensors: transformer\..* is also in part-0\.safetensors")
    for name in ("../model/part-0.safetensors", "/etc/passwd", "part-0.bin", 7, None):
        index.write_text(json.dumps({"metadata": {}, "weight_map": files | {"more": name}}))
        assert_rejected(
            folder, "is not the name of a safetensors file in this folder|not an index of safetensors files"
        )
    index.write_text("{}")
    assert_rejected(folder, "not an index of safetensors files")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": -1e9}, r"not finite: blocks\.0\.attn\.hook_z\[0, 0, 0\] is nan"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": -2.0}},
            r"not finite: blocks\.0\.(attn\.hook_z|hook_attn_out)\[",
        ),
    ],
)
def test_networks_that_compute_nan_are_located(llama: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(llama, **changes)
    assert_rejected(llama, message)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("transformer.h.1.attn.c_proj.weight", r"blocks\.1\.hook_attn_out\["),
        ("transformer.h.1.mlp.c_proj.weight", r"blocks\.1\.hook_mlp_out\["),
        ("transformer.h.2.mlp.c_fc.weight", r"blocks\.2\.hook_mlp_out\["),
        ("transformer.wte.weight", r"blocks\.0\.|logits\["),
    ],
)
def test_overflows_are_located(folder: Path, name: str, where: str) -> None:
    """Finite weights that are so large that their products are not."""
    edit_weight(folder, name, lambda w: w * 1e38 * 0.1 / w.abs().max() * 30)
    assert_rejected(folder, rf"the network computes numbers that are not finite: {where}")


def test_nan_in_the_unembedding_is_located(subject_folder: Callable[[str], Path]) -> None:
    subject = load_subject(subject_folder("llama"), process_weights=False)
    assert locate_non_finite(subject, probe_tokens(subject)) is None
    with torch.no_grad():
        subject.parts.head.weight[5] = torch.nan
    assert locate_non_finite(subject, probe_tokens(subject)) == "logits[0, 5] is nan, 16 of 1,024 are not finite"
    with torch.no_grad():
        subject.parts.final_norm.get_parameter("weight")[3] = torch.nan
    assert str(locate_non_finite(subject, probe_tokens(subject))).startswith("ln_final.hook_normalized[0, 0, 3] is nan")


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-this-name/model", "a\0b", "model\n"])
def test_names_that_are_no_paths(name: str) -> None:
    with pytest.raises(UserError) as caught:
        find_folder(name)
    assert len(str(caught.value)) < 400


def test_a_panic_of_the_tokenizers_library_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tokenizer(tmp_path)
    intact = json.loads((tmp_path / "tokenizer.json").read_text())
    panicking = intact | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    for content in (panicking, {}, intact | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"tokenizer\.json: ") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_encodes_nothing(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="as no tokens at all"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("value", [True, -1, 64, 10**12, 1.0, "t0", {}, [], [None]])
@pytest.mark.parametrize("token", ["\ud800", "nothing", 7, None, {"content": ["t0"]}, ["t0"]])
def test_end_of_text_that_is_no_token(tmp_path: Path, value: Any, token: Any) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(tmp_path)
