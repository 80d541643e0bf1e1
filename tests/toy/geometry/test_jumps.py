"""Jumps of a quantity and drops of a loss."""

import math

import pytest
import torch

from crux.toy.geometry.jumps import abruptness, find_drops, largest_jump


def test_largest_jump_of_a_line_and_of_a_step() -> None:
    points = 101
    line, step = torch.linspace(0, 3, points), (torch.arange(points) >= 40).float()
    values = torch.stack([line, step, torch.ones(points), 2 - line], dim=1)
    assert largest_jump(values, window=10).tolist() == pytest.approx([0.1, 1, 0, 0.1], abs=1e-5)


def test_abruptness_is_the_largest_change_over_the_median() -> None:
    values = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [9.0, 5.0], [8.0, 5.0], [7.0, 5.0]])
    assert abruptness(values).tolist() == [7, 0]  # changes 1, 1, 7, 1, 1


def build_staircase(*heights: float, at: tuple[int, ...], width: float = 4.0) -> torch.Tensor:
    """Return a loss that starts at 1 and falls by each of the heights around each of the points."""
    t = torch.arange(300.0)
    falls = [height * torch.sigmoid((t - middle) / width) for height, middle in zip(heights, at, strict=True)]
    return 2 - torch.stack(falls).sum(0)


def test_drops_are_counted_where_they_are_steepest() -> None:
    drops = find_drops(build_staircase(0.6, 0.2, 0.2, at=(60, 150, 240)))
    assert len(drops.steepest) == 3
    for i, middle in zip(drops.steepest, (60, 150, 240), strict=True):
        assert abs(i - middle) <= 2
    assert len(drops.between) == 2
    assert 80 < drops.between[0] < 130
    assert 170 < drops.between[1] < 220


def test_one_smooth_fall_is_one_drop_and_a_tiny_one_is_none() -> None:
    assert len(find_drops(torch.tensor([math.exp(-t / 30) for t in range(300)])).steepest) == 1
    assert len(find_drops(build_staircase(0.8, 0.005, at=(60, 200))).steepest) == 1
    assert len(find_drops(build_staircase(0.5, 0.5, at=(100, 104))).steepest) == 1  # no plateau between


def test_jitter_is_no_drop() -> None:
    rng = torch.Generator().manual_seed(0)
    loss = build_staircase(0.5, 0.5, at=(80, 200)) + 1e-3 * torch.randn(300, generator=rng)
    assert len(find_drops(loss).steepest) == 2
