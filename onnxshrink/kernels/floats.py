"""8-bit floating-point formats, as ONNX defines them (after Micikevicius et al., 2209.05433).

What is beyond the largest number becomes the largest number, as in ONNX' saturating Cast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Float8 = Literal["float8e4m3fn", "float8e5m2"]
Array = npt.NDArray[np.float32]
_SINGLE_BIAS, _SINGLE_MANTISSA = 127, 23


@dataclass(frozen=True)
class Format:
    """A sign bit, an exponent, a mantissa; subnormal numbers below exponent 1.

    Attributes:
        mantissa: Bits of the mantissa.
        bias: What the stored exponent exceeds the exponent by.
        largest: The largest finite number.
    """

    mantissa: int
    bias: int
    largest: float


FORMATS: dict[str, Format] = {
    "float8e4m3fn": Format(3, 7, 448.0),
    "float8e5m2": Format(2, 15, 57344.0),
}


def encode(values: npt.NDArray[np.floating], dtype: Float8) -> npt.NDArray[np.uint8]:
    """Round finite numbers to the nearest of a format, ties to the even one, and saturate.

    Args:
        values: Of any shape.
        dtype: The format.

    Returns:
        The numbers' bits, of the same shape.
    """
    kind = FORMATS[dtype]
    single = np.array(values, np.float32, ndmin=1)
    size = np.minimum(np.abs(single), np.float32(kind.largest))
    # A single's bits with its mantissa cut to size; adding to them carries into the exponent.
    bits = size.view(np.uint32)
    drop = np.uint32(_SINGLE_MANTISSA - kind.mantissa)
    half = np.uint32((1 << int(drop)) // 2 - 1)
    normal = (bits + half + ((bits >> drop) & np.uint32(1))) >> drop
    normal -= np.uint32((_SINGLE_BIAS - kind.bias) << kind.mantissa)
    smallest = np.float32(2.0 ** (1 - kind.bias))
    steps = np.rint(size * np.float32(2.0 ** (kind.bias - 1 + kind.mantissa)))
    code: npt.NDArray[np.uint8] = np.where(size < smallest, steps.astype(np.uint32), normal).astype(
        np.uint8
    )
    code |= np.signbit(single).astype(np.uint8) << 7
    return code.reshape(np.shape(values))


def decode(codes: npt.NDArray[np.uint8], dtype: Float8) -> Array:
    """The numbers whose bits these are; NaN and infinity where the format has them."""
    return _table(dtype)[codes]


def _table(dtype: Float8) -> Array:
    kind = FORMATS[dtype]
    code = np.arange(128)
    exponent, fraction = code >> kind.mantissa, code & ((1 << kind.mantissa) - 1)
    value = np.where(
        exponent > 0,
        (fraction + (1 << kind.mantissa)) * 2.0 ** (exponent - kind.bias - kind.mantissa),
        fraction * 2.0 ** (1.0 - kind.bias - kind.mantissa),
    )
    value[value > kind.largest] = np.nan
    if dtype == "float8e5m2":
        value[124] = np.inf
    return np.concatenate([value, -value]).astype(np.float32)
