"""SAELens's folder: by its keys and shapes here; opened with sae-lens itself in test_saelens_opens.py (slow)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crux.formats import saelens
from crux.saes.relu import ReluSAE

METADATA = {
    "model_name": "tiny",
    "hook_name": "blocks.6.hook_resid_pre",
    "process_weights": False,
    "context_size": 256,
    "prepend_bos": False,
    "dataset_path": "packaged",
    "note": "λ=1.5",
}


def trained(*, input_scale: float = 0.25) -> ReluSAE:
    """Neither unit norm nor unit scale, as after training."""
    generator = torch.Generator().manual_seed(0)
    sae = ReluSAE(d_model=6, n_latents=20, init="paper", init_norm=1.0, generator=generator)
    return sae.start_at(torch.randn(6, generator=generator), input_scale=input_scale)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saelens.save(trained(), tmp_path / "runs" / "sae", METADATA)
    return tmp_path / "runs" / "sae"


def test_the_same_function_comes_back(folder: Path) -> None:
    sae, metadata = saelens.load(folder)
    x = 5 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae(x), trained()(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode(x).c, trained().encode(x).c / 0.25, rtol=1e-5, atol=1e-5)
    assert METADATA.items() <= metadata.items()
    assert metadata["input_scale"] == 0.25


def test_saving_twice_changes_nothing(folder: Path) -> None:
    first = load_file(folder / saelens.WEIGHTS)
    sae, metadata = saelens.load(folder)
    saelens.save(sae, folder, metadata)
    for name, value in load_file(folder / saelens.WEIGHTS).items():
        torch.testing.assert_close(value, first[name], rtol=1e-6, atol=1e-7)


def test_what_sae_lens_asks_for(folder: Path) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "standard",
        "d_in": 6,
        "d_sae": 20,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert int(metadata["sae_lens_version"].split(".")[0]) >= 6  # else SAELens drops the hook's name
    assert metadata["model_from_pretrained_kwargs"]["fold_ln"] is False
    tensors = load_file(folder / "sae_weights.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "W_enc": (6, 20),
        "b_enc": (20,),
        "W_dec": (20, 6),
        "b_dec": (6,),
    }
    torch.testing.assert_close(tensors["W_dec"].norm(dim=-1), torch.ones(20))


def test_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / saelens.WEIGHTS).read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(saelens, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        saelens.save(trained(input_scale=1.0), folder, METADATA)
    assert [path.name for path in folder.parent.iterdir()] == ["sae"]
    assert (folder / saelens.WEIGHTS).read_bytes() == before


def test_anothers_standard_sae_keeps_its_function(tmp_path: Path) -> None:
    """c = ReLU((x − b_dec) W_enc + b_enc), a decoder of any norm: codes in units of the decoder's norm."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (3, 5), "b_enc": (5,), "W_dec": (5, 3), "b_dec": (3,)}
    W = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(W, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": 3, "d_sae": 5}))
    sae, metadata = saelens.load(tmp_path)
    x = torch.randn(20, 3, generator=generator)
    codes = torch.relu((x - W["b_dec"]) @ W["W_enc"] + W["b_enc"])
    torch.testing.assert_close(sae.encode(x).c, codes * W["W_dec"].norm(dim=-1))
    torch.testing.assert_close(sae(x), codes @ W["W_dec"] + W["b_dec"])
    assert metadata == {}


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / saelens.WEIGHTS)
    del tensors["b_enc"]
    save_file(tensors, folder / saelens.WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.rename(f.parent / "elsewhere"), "no SAE folder at"),
        (lambda f: (f / "cfg.json").unlink(), "no cfg.json"),
        (lambda f: (f / saelens.WEIGHTS).unlink(), "no sae_weights.safetensors"),
        (lambda f: (f / "cfg.json").write_text("{"), "not JSON"),
        (lambda f: (f / "cfg.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
        (lambda f: (f / "cfg.json").write_text("[]"), "not a SAELens config"),
        (lambda f: (f / saelens.WEIGHTS).write_bytes(b"junk"), "not a safetensors file"),
        (
            lambda f: (f / saelens.WEIGHTS).write_bytes((f / saelens.WEIGHTS).read_bytes()[:-9]),
            "not a safetensors file",
        ),
        (lambda f: edit(f, architecture="gated"), "'gated' cannot be read; allowed is 'standard'"),
        (lambda f: edit(f, normalize_activations="layer_norm"), "normalize_activations='layer_norm'"),
        (lambda f: edit(f, d_sae=21), r"b_enc is \(20,\), not \(21,\)|W_enc is \(6, 20\), not \(6, 21\)"),
        (lambda f: edit(f, d_in="six"), "d_in is 'six', not a positive integer"),
        (drop_tensor, "holds W_dec, W_enc, b_dec, not"),
    ],
)
def test_mistakes(folder: Path, spoil: Any, message: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        saelens.load(folder)
    assert "\n" not in str(caught.value)


def test_metadata_must_say_where_the_sae_belongs(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="hook_name"):
        saelens.save(trained(), tmp_path / "sae", {"model_name": "tiny"})
