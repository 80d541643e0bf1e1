"""Names and order of the hook points."""

import subprocess
import sys

import pytest

from crux.config.errors import UserError
from crux.subjects.hooks import check_hook, check_layer, hook_names, later_residuals, parse_hook, sort_hooks


def test_names_of_two_blocks() -> None:
    assert hook_names(2) == [
        "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.0.hook_attn_out", "blocks.0.hook_resid_mid",
        "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.1.hook_resid_mid",
        "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post",
    ]  # fmt: skip
    assert "blocks.0.hook_resid_mid" not in hook_names(2, resid_mid=False)
    assert len(hook_names(2, resid_mid=False)) == 10  # five per block


def test_parse_and_name_are_inverse() -> None:
    for name in hook_names(12):
        assert parse_hook(name).name == name
    assert parse_hook("blocks.10.hook_mlp_out") == (10, "mlp_out")
    assert parse_hook("blocks.10.attn.hook_z") == (10, "z")


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_z", "blocks.1.attn_hook_z", "blocks.1.attn.hook_attn_out", "blocks.1.z"]
)
def test_other_spellings_are_rejected(name: str) -> None:
    with pytest.raises(UserError, match=r"one of hook_resid_pre, attn\.hook_z, hook_attn_out, hook_resid_mid, hook_m"):
        parse_hook(name)


def test_hooks_are_sorted_by_layer_number_not_alphabetically() -> None:
    names = hook_names(12)
    assert sort_hooks(reversed(names)) == names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("blocks.6.hook_resid_per", "blocks.6.hook_resid_pre"),
        ("blocks.6.resid_pre", "blocks.6.hook_resid_pre"),
        ("block.6.hook_mlp_out", "blocks.6.hook_mlp_out"),
        ("blocks.3.mlp.hook_post", "blocks.3."),
        ("blocks.6.hook_z", "blocks.6.attn.hook_z"),
        ("blocks.6.attn.hook_zz", "blocks.6.attn.hook_z"),
    ],
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"^hook_point={name}: no such hook point; nearest are {nearest}"):
        check_hook(name, n_layers=8)


def test_layer_out_of_range_is_rejected() -> None:
    with pytest.raises(UserError, match=r"^layer=12: the model has 8 layers, allowed are 0 to 7$"):
        check_layer(12, n_layers=8)
    with pytest.raises(UserError, match=r"^layer=-1: "):
        check_layer(-1, n_layers=8)
    with pytest.raises(UserError, match=r"blocks\.12\.hook_resid_pre: the model has 8 layers"):
        check_hook("blocks.12.hook_resid_pre", n_layers=8)
    with pytest.raises(
        ValueError, match=r"blocks\.8\.attn\.hook_z: the model has 8 layers, .* blocks\.0 to blocks\.7$"
    ):
        check_hook("blocks.8.attn.hook_z", n_layers=8)
    check_layer(7, n_layers=8)


def test_wrong_layer_and_wrong_kind_are_both_reported() -> None:
    with pytest.raises(
        UserError,
        match=r"^hook_point=blocks\.9\.x: the model has 8 layers, .* blocks\.7; .* of a block are hook_resid_pre, attn",
    ):
        check_hook("blocks.9.x", n_layers=8)


def test_zero_padded_layers_are_rejected() -> None:
    with pytest.raises(UserError, match="nearest"):
        check_hook("blocks.06.hook_resid_pre", n_layers=8)


def test_parallel_blocks_have_no_resid_mid() -> None:
    with pytest.raises(UserError, match="no such hook point"):
        check_hook("blocks.0.hook_resid_mid", n_layers=2, resid_mid=False)
    assert check_hook("blocks.0.hook_resid_mid", n_layers=2).kind == "resid_mid"


@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("blocks.1.hook_resid_pre", ["blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"]),
        ("blocks.1.hook_attn_out", ["blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"]),
        ("blocks.1.attn.hook_z", ["blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"]),
        ("blocks.3.attn.hook_z", ["blocks.3.hook_resid_post"]),
        ("blocks.1.hook_resid_post", ["blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"]),
        ("blocks.3.hook_resid_pre", ["blocks.3.hook_resid_post"]),
        ("blocks.3.hook_mlp_out", ["blocks.3.hook_resid_post"]),
        ("blocks.3.hook_resid_post", []),
    ],
)
def test_later_residuals(name: str, later: list[str]) -> None:
    assert later_residuals(name, n_layers=4) == later


def test_hooks_shape_and_source_do_not_import_torch() -> None:
    code = (
        "import sys, crux.subjects.hooks, crux.subjects.shape, crux.subjects.source; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
