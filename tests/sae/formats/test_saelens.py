"""SAELens's format: keys, shapes and functions; test_saelens_opens.py (slow) opens folders with sae-lens itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE
from crux.sae.formats import saelens
from tests.support.saved_saes import METADATA, SAVED_AS, TRANSCODERS, draw_activations, make_trained_sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saelens.save_sae(make_trained_sae("relu"), tmp_path / "runs" / "sae", METADATA)
    return tmp_path / "runs" / "sae"


def assert_same_codes(folder: Path, sae: SAE, metadata: dict[str, Any]) -> None:
    """Assert that a saved SAE is loaded as the folded SAE, with the same codes bit for bit."""
    saelens.save_sae(sae, folder, metadata)
    found, loaded_metadata = saelens.load_sae(folder)
    wanted = sae.fold()
    assert type(found) is type(wanted)
    codes = found.encode(draw_activations())
    assert torch.equal(codes.c, wanted.encode(draw_activations()).c)
    assert 0.05 < (codes.c > 0).float().mean() < 0.95
    torch.testing.assert_close(found.decode(codes), wanted.decode(codes), rtol=1e-5, atol=1e-5)
    assert metadata.items() <= loaded_metadata.items()
    assert loaded_metadata["input_scale"] == 0.25  # that of make_trained_sae


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cfg.json").read_text())


@pytest.mark.parametrize(("kind", "name"), SAVED_AS.items())
def test_every_architecture_is_loaded_as_saved(tmp_path: Path, kind: str, name: str) -> None:
    assert_same_codes(tmp_path / "sae", make_trained_sae(kind), METADATA)
    config = read_config(tmp_path / "sae")
    assert config["architecture"] == name
    assert config["apply_b_dec_to_input"] is False
    assert (config.get("k"), config.get("rescale_acts_by_decoder_norm")) == (
        (4, False) if name == "topk" else (None, None)
    )


@pytest.mark.parametrize(("kind", "name"), TRANSCODERS.items())
def test_transcoders_are_loaded_as_saved(tmp_path: Path, kind: str, name: str) -> None:
    written = METADATA | {"hook_name_out": "blocks.6.hook_mlp_out"}
    assert_same_codes(tmp_path / "wide", make_trained_sae(kind, d_out=5), written)
    assert_same_codes(tmp_path / "even", make_trained_sae(kind), written)
    assert [read_config(tmp_path / f)["architecture"] for f in ("wide", "even")] == [name, name]
    assert [read_config(tmp_path / f)["d_out"] for f in ("wide", "even")] == [5, 6]


@pytest.mark.parametrize("kind", ["topk", "gradient_topk", "gated"])
def test_transcoders_that_sae_lens_does_not_have(tmp_path: Path, kind: str) -> None:
    """With equal widths the format of ordinary SAEs is used. With different widths no format fits; a check before training says so."""
    written = METADATA | {"hook_name_out": "blocks.6.hook_mlp_out"}
    assert_same_codes(tmp_path / "even", make_trained_sae(kind), written)
    assert read_config(tmp_path / "even")["architecture"] == SAVED_AS[kind]
    saelens.check_saveable(make_trained_sae(kind), transcodes=True)
    wide = make_trained_sae(kind, d_out=5)
    for save in (
        lambda: saelens.save_sae(wide, tmp_path / "wide", written),
        lambda: saelens.check_saveable(wide, transcodes=True),
    ):
        with pytest.raises(UserError, match=r"that reads 6 dimensions and writes 5; .* only has ReLU and JumpReLU$"):
            save()
    assert not (tmp_path / "wide").exists()


def test_concatenated_heads(tmp_path: Path) -> None:
    """SAELens concatenates the heads of hook_z if cfg.json says so."""
    heads = METADATA | {"hook_name": "blocks.6.attn.hook_z"}
    assert_same_codes(tmp_path / "sae", make_trained_sae("relu"), heads)
    assert read_config(tmp_path / "sae")["reshape_activations"] == "hook_z"
    # a transcoder that reads hook_z: SAELens would split its output into heads too, which hook_attn_out does not have
    transcoder = heads | {"hook_name_out": "blocks.6.hook_attn_out"}
    saelens.save_sae(make_trained_sae("relu"), tmp_path / "transcoder", transcoder)
    assert read_config(tmp_path / "transcoder")["reshape_activations"] == "none"


def test_saving_twice_changes_nothing(folder: Path) -> None:
    first = load_file(folder / saelens.WEIGHTS)
    sae, metadata = saelens.load_sae(folder)
    saelens.save_sae(sae, folder, metadata)
    for name, value in load_file(folder / saelens.WEIGHTS).items():
        torch.testing.assert_close(value, first[name], rtol=1e-6, atol=1e-7)


def test_keys_that_sae_lens_needs(folder: Path) -> None:
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


def test_a_failed_save_leaves_the_old_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / saelens.WEIGHTS).read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(saelens, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        saelens.save_sae(make_trained_sae("topk"), folder, METADATA)
    assert [path.name for path in folder.parent.iterdir()] == ["sae"]
    assert (folder / saelens.WEIGHTS).read_bytes() == before


SHAPES = {"W_enc": (3, 5), "W_dec": (5, 3), "b_dec": (3,)}


def write_foreign_folder(folder: Path, *names: str, **config: Any) -> dict[str, Tensor]:
    """Write a folder as another tool would: a decoder with any norms, and the named tensors with one number per latent."""
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES | dict.fromkeys(names, (5,))
    W = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(W, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 3, "d_sae": 5} | config))
    return W


def assert_same_function(folder: Path, x: Tensor, codes: Tensor, W: dict[str, Tensor]) -> None:
    """Assert equal reconstructions, and codes that are multiplied by the norms of the decoder."""
    sae, metadata = saelens.load_sae(folder)
    norm = W["W_dec"].norm(dim=-1)
    assert (norm - 1).abs().min() > 0.01
    assert 0.1 < (codes > 0).float().mean() < 0.9
    torch.testing.assert_close(sae.encode(x).c, codes * norm)
    torch.testing.assert_close(sae(x), codes @ W["W_dec"] + W["b_dec"])
    assert metadata == {}


X = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("subtracts", [True, False, None])
class TestForeignFolders:
    """SAELens's formulas, with and without subtraction of the decoder bias; SAELens subtracts it by default."""

    @staticmethod
    def write_and_encode(
        folder: Path, subtracts: bool | None, *names: str, **config: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config |= {} if subtracts is None else {"apply_b_dec_to_input": subtracts}
        W = write_foreign_folder(folder, *names, **config)
        return (X if subtracts is False else X - W["b_dec"]) @ W["W_enc"], W

    def test_standard(self, tmp_path: Path, subtracts: bool | None) -> None:
        u, W = self.write_and_encode(tmp_path, subtracts, "b_enc", architecture="standard")
        assert_same_function(tmp_path, X, torch.relu(u + W["b_enc"]), W)

    def test_jumprelu_with_thresholds_of_any_sign(self, tmp_path: Path, subtracts: bool | None) -> None:
        u, W = self.write_and_encode(tmp_path, subtracts, "b_enc", "threshold", architecture="jumprelu")
        assert W["threshold"].min() < 0 < W["threshold"].max()
        pre = u + W["b_enc"]
        assert_same_function(tmp_path, X, torch.relu(pre) * (pre > W["threshold"]), W)

    def test_gated(self, tmp_path: Path, subtracts: bool | None) -> None:
        u, W = self.write_and_encode(tmp_path, subtracts, "b_gate", "b_mag", "r_mag", architecture="gated")
        codes = (u + W["b_gate"] > 0) * torch.relu(u * W["r_mag"].exp() + W["b_mag"])
        assert_same_function(tmp_path, X, codes, W)

    def test_topk_that_uses_the_decoder_norms(self, tmp_path: Path, subtracts: bool | None) -> None:
        u, W = self.write_and_encode(
            tmp_path, subtracts, "b_enc", architecture="topk", k=2, rescale_acts_by_decoder_norm=True
        )
        pre = (u + W["b_enc"]) * W["W_dec"].norm(dim=-1)
        values, chosen = pre.topk(2)
        theirs = torch.zeros_like(pre).scatter(-1, chosen, values.relu())
        sae, _ = saelens.load_sae(tmp_path)
        torch.testing.assert_close(sae.encode(X).c, theirs)
        torch.testing.assert_close(sae(X), theirs / W["W_dec"].norm(dim=-1, keepdim=True).T @ W["W_dec"] + W["b_dec"])


def test_a_topk_that_ignores_the_decoder_norms(tmp_path: Path) -> None:
    """With equal decoder norms it is a TopK SAE of crux; with different norms it is not, and loading it is an error."""
    W = write_foreign_folder(tmp_path, "b_enc", architecture="topk", k=2, rescale_acts_by_decoder_norm=False)
    with pytest.raises(UserError, match="selects its k latents without regard to the decoder norms"):
        saelens.load_sae(tmp_path)
    W["W_dec"] = 3 * torch.nn.functional.normalize(W["W_dec"], dim=-1)
    save_file(W, tmp_path / saelens.WEIGHTS)
    values, chosen = ((X - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).topk(2)
    assert_same_function(tmp_path, X, torch.zeros(200, 5).scatter(-1, chosen, values.relu()), W)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "topk", "k": 6}, "k must lie between 1 and the 5 latents"),
        ({"architecture": "topk"}, "k is None, not a positive integer"),
        ({"architecture": "topk", "k": 2.0}, "k is 2.0, not a positive integer"),
        ({"architecture": "transcoder"}, "d_out is None, not a positive integer"),
        ({"architecture": "transcoder", "d_out": 3}, "a transcoder cannot have apply_b_dec_to_input"),
        (
            {"architecture": "skip_transcoder", "d_out": 3},
            "'skip_transcoder' cannot be read; allowed are standard, topk",
        ),
        ({"architecture": ["standard"]}, "cannot be read; allowed are"),
        ({"architecture": "standard", "activation_fn_str": "topk"}, "activation_fn_str='topk' cannot be read"),
    ],
)
def test_an_sae_with_a_function_that_crux_does_not_have_is_an_error(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    write_foreign_folder(tmp_path, "b_enc", **config)
    with pytest.raises(UserError, match=message) as caught:
        saelens.load_sae(tmp_path)
    assert "\n" not in str(caught.value)


def edit_config(folder: Path, **changes: Any) -> None:
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
        (
            lambda f: edit_config(f, architecture="gated"),
            "holds W_dec, W_enc, b_dec, b_enc, not W_dec, W_enc, b_dec, b_gate",
        ),
        (lambda f: edit_config(f, normalize_activations="layer_norm"), "normalize_activations='layer_norm'"),
        (lambda f: edit_config(f, d_sae=21), r"b_enc is \(20,\), not \(21,\)|W_enc is \(6, 20\), not \(6, 21\)"),
        (lambda f: edit_config(f, d_in="six"), "d_in is 'six', not a positive integer"),
        (drop_tensor, "holds W_dec, W_enc, b_dec, not"),
    ],
)
def test_user_errors(folder: Path, spoil: Any, message: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        saelens.load_sae(folder)
    assert "\n" not in str(caught.value)


def test_metadata_is_required(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="hook_name"):
        saelens.save_sae(make_trained_sae("relu"), tmp_path / "sae", {"model_name": "tiny"})
