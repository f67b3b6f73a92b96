"""Packing of codes narrower than a byte, as ONNX stores them: first element in the low bits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt


def pack(codes: npt.NDArray[np.integer], bits: Literal[2, 4]) -> npt.NDArray[np.uint8]:
    """Pack codes of any shape into ceil(size * bits / 8) bytes; the last byte is filled with 0."""
    per_byte = 8 // bits
    flat = codes.reshape(-1).astype(np.uint8) & ((1 << bits) - 1)
    lanes = np.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    packed = np.zeros(len(lanes), np.uint8)
    for lane in range(per_byte):
        packed |= lanes[:, lane] << np.uint8(lane * bits)
    return packed


def unpack(
    packed: npt.NDArray[np.uint8], bits: Literal[2, 4], shape: tuple[int, ...], *, signed: bool
) -> npt.NDArray[np.int8 | np.uint8]:
    """Undo :func:`pack`; signed codes are sign-extended."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    lanes = (packed.reshape(-1, 1) >> shifts) & ((1 << bits) - 1)
    flat = lanes.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
    if not signed:
        return flat.astype(np.uint8)
    half = 1 << (bits - 1)
    return ((flat.astype(np.int8) ^ half) - half).astype(np.int8)
