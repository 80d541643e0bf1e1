"""Files of tensors with a checksum: every changed number is found."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crux.config.checked_tensors import DamagedTensorsError, read_checked_tensors, write_checked_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_checked_tensors(tmp_path / "x", {"a": TENSORS["a"].mT, "b": TENSORS["b"]})
    tensors = read_checked_tensors(tmp_path / "x", required=True)
    assert torch.equal(tensors["a"], TENSORS["a"].mT)
    assert tensors["b"] == 3


def test_every_changed_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, n_found = tmp_path / "x", 0
    write_checked_tensors(path, TENSORS)
    content = bytearray(path.read_bytes())
    for position in range(len(content)):
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            read = read_checked_tensors(path, required=True)
        except DamagedTensorsError:
            n_found += 1
        else:  # a blank of the header
            assert read.keys() == TENSORS.keys()
            assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
        content[position] ^= 1 << position % 8
    assert n_found > 0.9 * len(content)


def test_a_file_without_a_checksum_is_accepted_only_on_request(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x")
    assert read_checked_tensors(tmp_path / "x", required=False).keys() == TENSORS.keys()
    with pytest.raises(DamagedTensorsError, match="no checksum"):
        read_checked_tensors(tmp_path / "x", required=True)
