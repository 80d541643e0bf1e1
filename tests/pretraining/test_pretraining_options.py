"""Options of the pretraining that do not fit each other are rejected before anything is trained."""

from collections.abc import Callable


def test_heads_divide_the_width(error_message: Callable[..., str]) -> None:
    line = error_message("experiment=pretrain", "pretrain.d_model=8", "pretrain.n_heads=3")
    assert "pretrain.n_heads=3: must divide pretrain.d_model=8" in line


def test_windows_overlap_or_touch(error_message: Callable[..., str]) -> None:
    line = error_message("experiment=pretrain", "model.context=128", "pretrain.stride=129")
    assert "pretrain.stride=129: must be model.context=128 or less" in line
