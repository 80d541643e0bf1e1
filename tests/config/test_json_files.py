"""Reading JSON and safetensors files of somebody else."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crux.config.errors import UserError
from crux.config.json_files import read_json_object
from crux.config.tensor_files import check_finite, load_tensors, read_tensor_header


def test_an_object_is_returned_as_it_is(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True], "λ": {"b": "\ud800"}, "c": 10**30}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json_object(tmp_path / "a.json") == content
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert read_json_object(tmp_path / "bom.json") == content
    (tmp_path / "link.json").symlink_to("a.json")
    assert read_json_object(tmp_path / "link.json") == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file, or a broken one"),
        (b"{", "not a JSON file, or a broken one"),
        (b"\xff\xfe{\x00}\x00", "not a JSON file, or a broken one"),
        (b"[1]", "a JSON object is needed, this is a list"),
        (b"null", "a JSON object is needed, this is a NoneType"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' occurs twice"),
        (b'{"a": NaN}', "the number NaN is not finite"),
        (b'{"a": [-Infinity]}', "the number -Infinity is not finite"),
        (b'{"a": 1e400}', "the number 1e400 is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a JSON file, or a broken one"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json_object(tmp_path / "a.json")
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_json_object, read_tensor_header, load_tensors])
def test_what_is_no_file_is_one_line(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "nothing": "no such file",
        "folder": "a folder, not a file",
        "dangling": "a symbolic link to a file that does not exist",
        "loop": "a symbolic link to a file that does not exist",
        "zero": "not a regular file",
        "pipe": "not a regular file",
        "a" * 300: "not the path of a file",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)


def write_header(path: Path, header: bytes, *, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(16))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"[]", None),
        (b"{", None),
        (b"{}", 2**40),
        (b"{}", 2**64 - 1),
        (b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 32]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}', None),
        (b'{"a": {"dtype": "F32", "shape": [1099511627776, 1099511627776], "data_offsets": [0, 16]}}', None),
        (b'{"a": {"dtype": "X", "shape": [4], "data_offsets": [0, 16]}}', None),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, None),
    ],
)
def test_a_broken_safetensors_file_is_one_line(tmp_path: Path, header: bytes, length: int | None) -> None:
    path = tmp_path / "a.safetensors"
    write_header(path, header, length=length)
    for read in (read_tensor_header, load_tensors):
        with pytest.raises(
            UserError, match=r"a\.safetensors: not a safetensors file, or a broken one \(.*\)$"
        ) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_header_and_finite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int8), "c": torch.ones(1, dtype=torch.bfloat16)}
    save_file(tensors, path)
    header = read_tensor_header(path)
    assert {name: (h.shape, h.dtype, h.is_real) for name, h in header.items()} == {
        "a": ((2, 3), "F32", True), "b": ((4,), "I8", False), "c": ((1,), "BF16", True),
    }  # fmt: skip
    check_finite(load_tensors(path), path=path)
    tensors["a"][1, 2] = torch.inf
    with pytest.raises(UserError, match=r"a\.safetensors: a\[1, 2\] is inf; weights must be finite$"):
        check_finite(tensors, path=path)
    tensors["a"][0, 1] = torch.nan
    with pytest.raises(UserError, match=r"a\.safetensors: a\[0, 1\] is nan and 1 more; weights must be finite$"):
        check_finite(tensors, path=path)
