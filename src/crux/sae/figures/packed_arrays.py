"""Arrays as compressed text within an HTML file.

An array is stored byte by byte: first the lowest byte of each number, then the second lowest, and so on, since the high bytes of small
numbers compress to almost nothing. The names and types are not stored with the numbers but once per file.
"""

import base64
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

ArrayTypes = Sequence[tuple[str, str]]
"""The name and the type of each array: u1, u2, u4 (unsigned integers of so many bytes), or f12, f7, ... (float32 with so many significant
bits: a relative error of at most 2⁻ⁿ; up to 8 bits they take 2 bytes)."""

_INTEGERS = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32}


def pack_arrays(arrays: Mapping[str, np.ndarray], types: ArrayTypes) -> Iterator[bytes]:
    """Yield arrays as bytes: the length of each as u4, then its numbers, all their lowest bytes first."""
    stored = [_store(arrays[name].reshape(-1), kind) for name, kind in types]
    yield np.array([len(array) for array in stored], "<u4").tobytes()
    for array in stored:
        little = array.astype(array.dtype.newbyteorder("<")).view(np.uint8).reshape(len(array), array.dtype.itemsize)
        yield from (plane.tobytes() for plane in little.T)


def unpack_arrays(data: bytes, types: ArrayTypes) -> dict[str, np.ndarray]:
    """Return the arrays of `pack_arrays`, each with one axis."""
    lengths = np.frombuffer(data, "<u4", len(types))
    position, arrays = 4 * len(types), {}
    for (name, kind), length in zip(types, lengths.tolist(), strict=True):
        dtype = _stored_type(kind).newbyteorder("<")
        end = position + length * dtype.itemsize
        planes = np.frombuffer(data[position:end], np.uint8).reshape(dtype.itemsize, length)
        stored = np.ascontiguousarray(planes.T).reshape(-1).view(dtype)
        arrays[name] = _restore(stored, kind)
        position = end
    return arrays


def compress(parts: Iterable[bytes]) -> str:
    """Return bytes as base64 of gzip; the same bytes always give the same text.

    Each part has a code of its own, since the bytes of different arrays are differently distributed. That makes a page 8 % smaller.
    """
    # 31: the largest window, and gzip's header, without a time
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_FILTERED)
    pieces = [compressor.compress(part) + compressor.flush(zlib.Z_BLOCK) for part in parts]
    return base64.b64encode(b"".join([*pieces, compressor.flush()])).decode()


def decompress(text: str) -> bytes:
    """Return the bytes of `compress`."""
    return gzip.decompress(base64.b64decode(text))


def _stored_type(kind: str) -> np.dtype[Any]:
    if kind in _INTEGERS:
        return np.dtype(_INTEGERS[kind])
    return np.dtype(np.uint32 if int(kind[1:]) > 8 else np.uint16)


def _store(array: np.ndarray, kind: str) -> np.ndarray:
    dtype = _stored_type(kind)
    if kind in _INTEGERS:
        fits = array.size == 0 or (array.min() >= 0 and array.max() <= np.iinfo(dtype).max)
        assert fits, f"numbers from {array.min()} to {array.max()} in {kind}"
        return array.astype(dtype)
    bits = _round_bits(array, 24 - int(kind[1:]))
    return bits if dtype.itemsize == 4 else (bits >> 16).astype(dtype)


def _restore(stored: np.ndarray, kind: str) -> np.ndarray:
    if kind in _INTEGERS:
        return stored.astype(_INTEGERS[kind])
    bits = stored.astype(np.uint32)
    return (bits if stored.dtype.itemsize == 4 else bits << 16).view(np.float32)


def _round_bits(array: np.ndarray, n: int) -> np.ndarray:
    """Return the bits of numbers in float32, rounded so that the lowest n bits are zero; NaN has one form."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    half, mask = np.uint32((1 << (n - 1)) - 1), np.uint32((0xFFFFFFFF << n) & 0xFFFFFFFF)
    rounded = (bits + half + ((bits >> np.uint32(n)) & np.uint32(1))) & mask  # to the nearest, ties to even
    return np.where(np.isnan(array), np.uint32(0x7FC00000), rounded)
