"""Packing of codes of at most a byte, as ONNX stores them: the first element in the low bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Shifts and masks that move a byte's 4- or 2-bit codes to bytes of their own, all words at once;
# and what is left of a word when a shift has been undone.
_SPREAD: dict[int, tuple[np.dtype[Any], tuple[tuple[int, int], ...]]] = {
    4: (np.dtype("<u2"), ((4, 0x0F0F),)),
    2: (np.dtype("<u4"), ((12, 0x000F000F), (6, 0x03030303))),
}
_SQUEEZED = {4: 0xFF, 12: 0xFF, 6: 0x000F000F}
_PIECE = 2**17  # bytes that are packed at a time: what fits the cache of a core, and little memory


def pack(codes: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Pack the low bits of integers.

    Args:
        codes: Integers of any shape and sign; higher bits are dropped.
        bits: Of a code: 1, 2, 4 or 8.

    Returns:
        ``ceil(size * bits / 8)`` bytes; the last one is filled up with zeros.
    """
    narrow: NDArray[np.uint8] = codes.reshape(-1).astype(np.uint8, copy=False)
    if bits == 8:
        return narrow
    if bits == 1:
        return np.packbits(narrow & 1, bitorder="little")
    word, steps = _SPREAD[bits]
    packed = np.empty(-(-narrow.size // word.itemsize), np.uint8)
    for at in range(0, packed.size, _PIECE):
        piece = packed[at : at + _PIECE]
        part = narrow[at * word.itemsize : (at + _PIECE) * word.itemsize]
        words = np.zeros(piece.size, word)
        words.view(np.uint8)[: part.size] = part
        words &= steps[-1][1]
        for shift, _ in reversed(steps):
            words |= words >> shift
            words &= _SQUEEZED[shift]
        piece[:] = words
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first ``count`` codes that :func:`pack` packed, without their signs."""
    if bits == 8:
        return packed[:count]
    if bits == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    word, steps = _SPREAD[bits]
    words = packed.astype(word)
    for shift, mask in steps:
        words |= words << shift
        words &= mask
    return words.view(np.uint8)[:count]
