"""SAELens's format: keys, shapes and functions; test_saelens_opens.py (slow) opens folders with sae-lens itself."""

import json
import os
from collections.abc import Callable
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

    monkeypatch.setattr(saelens, "save", fail)
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


@pytest.mark.parametrize("in_file", ["rounded", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_topk_with_16_bit_weights(tmp_path: Path, dtype: torch.dtype, in_file: str) -> None:
    """The norms of its decoder differ by rounding only; another tool may have stored the rounded numbers as float32."""
    W = write_foreign_folder(tmp_path, "b_enc", architecture="topk", k=2, rescale_acts_by_decoder_norm=False)
    W["W_dec"] = 3 * torch.nn.functional.normalize(W["W_dec"], dim=-1)
    W = {name: tensor.to(dtype) for name, tensor in W.items()}
    save_file(W if in_file == "rounded" else {k: v.float() for k, v in W.items()}, tmp_path / saelens.WEIGHTS)
    W = {name: tensor.float() for name, tensor in W.items()}
    norm = W["W_dec"].norm(dim=-1)
    assert norm.max() - norm.min() > 1e-5
    values, chosen = ((X - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).topk(2)
    assert_same_function(tmp_path, X, torch.zeros(200, 5).scatter(-1, chosen, values.relu()), W)
    W["W_dec"][0] *= 1.1
    save_file({name: tensor.to(dtype) for name, tensor in W.items()}, tmp_path / saelens.WEIGHTS)
    with pytest.raises(UserError, match="decoder norms"):
        saelens.load_sae(tmp_path)


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
        ({"architecture": ["standard"]}, r"architecture is \['standard'\], not a string"),
        ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "activation_fn='tanh-relu' cannot be read"),
        ({"architecture": "standard", "activation_fn_str": "topk"}, "k is None, not a positive integer"),
        ({"activation_fn": "topk", "activation_fn_str": "relu"}, "they mean the same"),
        ({"architecture": "topk", "k": 2, "activation_fn_kwargs": {"k": 3}}, "k is 2, and 3 in activation_fn_kwargs"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is 'false', not true or false"),
        ({"apply_b_dec_to_input": 0}, "apply_b_dec_to_input is 0, not true or false"),
        ({"normalize_activations": 0}, "normalize_activations=0 cannot be read"),
        ({"finetuning_scaling_factor": True}, "but the weights hold no scaling_factor"),
        ({"metadata": [1]}, r"metadata is \[1\], not an object"),
        ({"metadata": {"hook_name": 6}}, "hook_name is 6, not a string"),
        ({"metadata": {"context_size": True}}, "context_size is True, not a positive integer"),
        ({"hook_name": {"a": "x" * 99}}, r"hook_name is {'a': 'x+\.\.\., not a string"),
        ({"metadata": {"process_weights": "yes"}}, "process_weights is 'yes', not true or false"),
        ({"d_in": 10**12}, r"W_enc is \(3, 5\), not \(1000000000000, 5\)"),
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


def edit_weights(folder: Path, name: str, edit: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(folder / saelens.WEIGHTS)
    save_file(tensors | {name: edit(tensors[name]).contiguous()}, folder / saelens.WEIGHTS)


def replace_by(path: Path, kind: str) -> None:
    path.unlink()
    {"folder": path.mkdir, "link": lambda: path.symlink_to("nowhere"), "pipe": lambda: os.mkfifo(path)}[kind]()


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
        (lambda f: (f / "cfg.json").write_text("{"), "not a JSON file"),
        (lambda f: (f / "cfg.json").write_bytes(b"\xff\xfe\x00"), "not a JSON file"),
        (lambda f: (f / "cfg.json").write_text("[]"), "a JSON object is needed"),
        (lambda f: (f / "cfg.json").write_text("[" * 100_000), "nested too deeply"),
        (lambda f: (f / "cfg.json").write_text('{"d_in": 6, "d_in": 6}'), "the key 'd_in' occurs twice"),
        (lambda f: (f / "cfg.json").write_text('{"d_in": 1e999}'), "1e999 is not finite"),
        (lambda f: (f / "cfg.json").write_text('{"d_in": ' + "9" * 5000 + "}"), "not a JSON file, or a broken one"),
        (lambda f: replace_by(f / "cfg.json", "folder"), "a folder, not a file"),
        (lambda f: replace_by(f / "cfg.json", "link"), "a symbolic link to a file that does not exist"),
        (lambda f: replace_by(f / "cfg.json", "pipe"), "not a regular file"),
        (lambda f: replace_by(f / saelens.WEIGHTS, "folder"), "a folder, not a file"),
        (lambda f: replace_by(f / saelens.WEIGHTS, "link"), "a symbolic link to a file that does not exist"),
        (
            lambda f: edit_weights(f, "W_enc", lambda W: W.index_put_((torch.tensor(2),), torch.tensor(torch.nan))),
            r"W_enc\[2, 0\] is nan and 19 more",
        ),
        (
            lambda f: edit_weights(f, "b_dec", lambda b: b / 0),
            r"b_dec\[0\] is -?inf and 5 more; weights must be finite",
        ),
        (lambda f: edit_weights(f, "W_dec", lambda W: W.to(torch.complex64)), "W_dec is of type C64"),
        (lambda f: edit_weights(f, "W_dec", lambda W: W.to(torch.int32)), "W_dec is of type I32"),
        (lambda f: edit_weights(f, "b_enc", lambda b: b > 0), "b_enc is of type BOOL"),
        (lambda f: edit_weights(f, "W_enc", lambda W: W.double() * 1e300), r"W_enc\[0, 0\] is -?inf"),
        (lambda f: edit_weights(f, "W_enc", lambda W: W[None]), r"W_enc is \(1, 6, 20\), not \(6, 20\)"),
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


FLAT = {
    "architecture": "standard", "activation_fn_str": "relu", "apply_b_dec_to_input": True, "normalize_activations": "none",
    "finetuning_scaling_factor": False, "context_size": 1024, "model_name": "gemma-2b", "hook_name": "blocks.6.hook_resid_post",
    "hook_layer": 6, "hook_head_index": None, "prepend_bos": True, "dataset_path": "HuggingFaceFW/fineweb",
    "model_from_pretrained_kwargs": {"center_writing_weights": False}, "sae_lens_training_version": "5.1.0",
    "dtype": "torch.float32", "device": "cuda", "activation_fn_kwargs": {}, "l1_coefficient": 5,
}  # fmt: skip
"""The layout of SAELens 3 to 5: no section `metadata`."""


class TestOldLayouts:
    """Folders of SAELens before version 6, by what its `handle_pre_6_0_config` does with them."""

    def test_flat_keys_are_the_metadata(self, tmp_path: Path) -> None:
        W = write_foreign_folder(tmp_path, "b_enc", **FLAT)
        sae, metadata = saelens.load_sae(tmp_path)
        torch.testing.assert_close(
            sae(X), torch.relu((X - W["b_dec"]) @ W["W_enc"] + W["b_enc"]) @ W["W_dec"] + W["b_dec"]
        )
        assert metadata == sae.metadata
        wanted = (
            "hook_name",
            "model_name",
            "context_size",
            "prepend_bos",
            "dataset_path",
            "model_from_pretrained_kwargs",
        )
        assert {key: metadata[key] for key in wanted} == {key: FLAT[key] for key in wanted}
        assert "l1_coefficient" not in metadata

    def test_gpt2_small_res_jb(self, tmp_path: Path) -> None:
        """No architecture, other names of keys, and a factor of ones among the weights."""
        old = {
            "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
            "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "context_size": 128,
            "dtype": "torch.float32", "b_dec_init_method": "geometric_median", "expansion_factor": 2,
        }  # fmt: skip
        W = write_foreign_folder(tmp_path, "b_enc", **old)
        save_file(W | {"scaling_factor": torch.ones(5)}, tmp_path / saelens.WEIGHTS)
        sae, metadata = saelens.load_sae(tmp_path)
        torch.testing.assert_close(
            sae(X), torch.relu((X - W["b_dec"]) @ W["W_enc"] + W["b_enc"]) @ W["W_dec"] + W["b_dec"]
        )
        assert metadata["hook_name"] == "blocks.8.hook_resid_pre"
        assert metadata["hook_layer"] == 8
        assert metadata["prepend_bos"] is True  # SAELens's default for such folders

    @pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
    def test_other_factors_multiply_the_codes(self, tmp_path: Path, name: str) -> None:
        W = write_foreign_folder(tmp_path, "b_enc", **FLAT | {"finetuning_scaling_factor": True})
        factor = torch.tensor([1.0, 2.0, 0.0, -0.5, 1e-3])
        save_file(W | {name: factor}, tmp_path / saelens.WEIGHTS)
        c = torch.relu((X - W["b_dec"]) @ W["W_enc"] + W["b_enc"])
        torch.testing.assert_close(saelens.load_sae(tmp_path)[0](X), (c * factor) @ W["W_dec"] + W["b_dec"])
        edit_config(tmp_path, finetuning_scaling_factor=False)
        with pytest.raises(UserError, match="finetuning_scaling_factor=false says that it is not used"):
            saelens.load_sae(tmp_path)

    @pytest.mark.parametrize("architecture", ["standard", "topk", None])
    def test_topk_as_an_activation_function(self, tmp_path: Path, architecture: str | None) -> None:
        config = FLAT | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}, "architecture": architecture}
        W = write_foreign_folder(
            tmp_path, "b_enc", **{key: value for key, value in config.items() if value is not None}
        )
        W["W_dec"] = torch.nn.functional.normalize(W["W_dec"], dim=-1)
        save_file(W, tmp_path / saelens.WEIGHTS)
        values, chosen = ((X - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).topk(2)
        codes = torch.zeros(200, 5).scatter(-1, chosen, values.relu())
        sae, metadata = saelens.load_sae(tmp_path)
        torch.testing.assert_close(sae.encode(X).c, codes)
        assert metadata["hook_name"] == "blocks.6.hook_resid_post"


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15])
def test_extreme_decoder_norms_are_folded_exactly(tmp_path: Path, scale: float) -> None:
    """Squares of 1e-30 do not fit into float32, and torch's normalize leaves vectors below 1e-12 as they are."""
    W = write_foreign_folder(tmp_path, "b_enc", architecture="standard", apply_b_dec_to_input=False)
    small = W | {"W_dec": W["W_dec"] * scale, "W_enc": W["W_enc"] / scale, "b_enc": W["b_enc"] / scale}
    save_file(small, tmp_path / saelens.WEIGHTS)
    sae, _ = saelens.load_sae(tmp_path)
    torch.testing.assert_close(sae(X), torch.relu(X @ W["W_enc"] + W["b_enc"]) @ W["W_dec"] + W["b_dec"])
    save_file(W | {"W_dec": W["W_dec"] * 1e30, "W_enc": W["W_enc"] * 1e30}, tmp_path / saelens.WEIGHTS)
    with pytest.raises(UserError, match="W_enc becomes too large for float32"):
        saelens.load_sae(tmp_path)


def test_metadata_is_required(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="hook_name"):
        saelens.save_sae(make_trained_sae("relu"), tmp_path / "sae", {"model_name": "tiny"})
