"""Arrays as compressed text: exact for integers, rounded to so many bits for floats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from crux.sae.figures.packed_arrays import compress, decompress, pack_arrays, unpack_arrays


@settings(max_examples=30, deadline=None)
@given(
    arrays(np.uint8, st.integers(0, 20)), arrays(np.uint16, st.integers(0, 20)), arrays(np.uint32, st.integers(0, 20))
)
def test_integers_come_back_exactly(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    types = [("a", "u1"), ("b", "u2"), ("c", "u4")]
    found = unpack_arrays(decompress(compress(pack_arrays({"a": a, "b": b, "c": c}, types))), types)
    for name, array in (("a", a), ("b", b), ("c", c)):
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("bits", [12, 8, 7, 5])
def test_floats_are_rounded_to_so_many_bits(bits: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=2000) * np.exp(rng.normal(0, 20, 2000))
    types = [("x", f"f{bits}")]
    found = unpack_arrays(b"".join(pack_arrays({"x": values}, types)), types)["x"]
    error = np.abs(found / values - 1).max()
    assert 2.0 ** -(bits + 1) < error <= 2.0**-bits
    special = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(unpack_arrays(b"".join(pack_arrays({"x": special}, types)), types)["x"], special)


def test_the_layout_by_hand() -> None:
    """Two lengths, then the low bytes 1, 2 and the high bytes 0, 1 of the two numbers, then the upper half of a float32."""
    packed = b"".join(pack_arrays({"n": np.array([1, 258]), "x": np.array([1.0])}, [("n", "u2"), ("x", "f8")]))
    assert packed == bytes([2, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 1, 0x80, 0x3F])


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(AssertionError, match="in u1"):
        list(pack_arrays({"a": np.array([256])}, [("a", "u1")]))


def test_the_same_bytes_give_the_same_text() -> None:
    assert compress([b"abc" * 100, b"d"]) == compress([b"abc" * 100, b"d"])
    assert decompress(compress([b"abc", b"", b"d"])) == b"abcd"
