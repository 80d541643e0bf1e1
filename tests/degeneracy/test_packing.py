"""Test that packed values are restored bit for bit, with the same memory layout."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from crux.config.files import write_tensors
from crux.degeneracy.basis import Basis
from crux.degeneracy.packing import pack, unpack


def test_bases_are_restored_exactly(tmp_path: Path) -> None:
    eye = torch.eye(3, dtype=torch.float64)
    C = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bases = [
        Basis("a", "pca", torch.zeros(3).double(), C, C.T, torch.ones(2).double(), 0.1, 1e-300),
        # C and C_pinv share their storage
        Basis("b", "neuron", torch.ones(3).double(), eye, eye, torch.ones(3).double(), 0.0, 1 / 3),
    ]
    packed = {k: v for basis in bases for k, v in pack(basis._asdict(), prefix=f"{basis.hook}/").items()}
    write_tensors(tmp_path / "piece.safetensors", packed)
    tensors = load_file(tmp_path / "piece.safetensors")
    for basis in bases:
        restored = unpack(Basis, tensors, prefix=f"{basis.hook}/", device=C.device, hook=basis.hook, name=basis.name)
        for before, after in zip(basis, restored, strict=True):
            if isinstance(before, torch.Tensor):
                assert isinstance(after, torch.Tensor)
                assert torch.equal(before, after)
                assert before.stride() == after.stride()
            else:
                assert type(before) is type(after)
                assert before == after
