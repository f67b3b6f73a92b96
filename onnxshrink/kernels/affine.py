"""Affine quantization of weights: ``value = (code - zero_point) * scale``.

A caller chooses which weights share a scale by the shape in which it passes the array and the
axes that it names: per tensor is all axes, per channel all but one, blocks an extra axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import floats

Dtype = Literal[
    "int8", "uint8", "int7", "uint7", "int4", "uint4", "int2", "uint2", "float8e4m3fn", "float8e5m2"
]
Clip = Literal["minmax", "mse"]
Rounding = Literal["rtn", "balanced"]
Array = npt.NDArray[np.float32]

#: Smallest and largest code. Signed types leave out the lowest code of 8 bits, so that
#: the range is symmetric and sums of u8 x s8 products are safer; fewer bits cannot afford to.
#: 7 bits are stored in 8: two products with a uint8 then fit an int16, which CPUs without VNNI
#: add them in.
RANGES: dict[Dtype, tuple[int, int]] = {
    "int8": (-127, 127),
    "uint8": (0, 255),
    "int7": (-63, 63),
    "uint7": (0, 127),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int2": (-2, 1),
    "uint2": (0, 3),
    "float8e4m3fn": (-448, 448),
    "float8e5m2": (-57344, 57344),
}
#: Stored bits a code.
BITS: dict[Dtype | Literal["int16"], int] = {
    "int8": 8, "uint8": 8, "int7": 8, "uint7": 8, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2,
    "float8e4m3fn": 8, "float8e5m2": 8, "int16": 16,
}  # fmt: skip
#: Fractions of the full range tried by ``clip="mse"``.
_CLIPS = np.linspace(1.0, 0.4, 25, dtype=np.float32)
_COARSE = 4  # of these ranges every so many-th is tried first
_PATIENCE = 8  # ranges behind the best one so far, before a group is given up: never at 2 bits
_CHUNK = 2**18  # elements at a time: what fits the cache of a core
#: No weight beyond this has a scale that float32 holds.
LARGEST = 2.0**127


@dataclass(frozen=True)
class Quantized:
    """Integer codes and what turns them back into weights.

    Attributes:
        codes: int8 or uint8, of the shape that was passed; codes of fewer bits are not packed
            here, and those of float8 are its bits. Other quantizers than this module's may need
            int16.
        scale: float32, of the same rank, with size 1 along the axes that share a scale.
        zero_point: Like ``scale``, of the codes' type; None when all are zero.
        dtype: The ONNX type that the codes are meant for.
    """

    codes: npt.NDArray[np.integer]
    scale: Array
    zero_point: npt.NDArray[np.integer] | None
    dtype: Dtype | Literal["int16"]

    @property
    def bits(self) -> int:
        """Stored bits a code."""
        return BITS[self.dtype]

    @property
    def centred(self) -> bool:
        """Whether zero has the middle code everywhere."""
        middle = 1 << (self.bits - 1) if self.dtype.startswith("u") else 0
        return self.zero_point is None or bool((self.zero_point == middle).all())

    @property
    def nbytes(self) -> int:
        """Stored bytes of codes, scales and zero points."""
        zero_points = 0 if self.zero_point is None else self.zero_point.size
        return -(-self.codes.size * self.bits // 8) + self.scale.nbytes + zero_points


def is_float(dtype: str) -> TypeGuard[floats.Float8]:
    """Whether a type's codes are floats: no zero points, and steps that grow with the weights."""
    return dtype in floats.FORMATS


def quantize(
    weights: npt.NDArray[np.floating],
    dtype: Dtype,
    axes: tuple[int, ...],
    *,
    symmetric: bool = True,
    clip: Clip = "minmax",
    rounding: Rounding = "rtn",
    short_scale: bool = False,
) -> Quantized:
    """Round weights to integer codes.

    Args:
        weights: Finite floats of any shape.
        dtype: Type of the codes.
        axes: Axes along which weights share a scale.
        symmetric: Whether zero is the middle of the range. Unsigned types then have their zero
            point at 2**(bits - 1). Float types always are.
        clip: ``minmax`` covers every weight; ``mse`` searches, for every scale, the range with the
            least squared error.
        rounding: ``rtn`` rounds to nearest (error <= scale / 2 within the range); ``balanced``
            then turns the closest calls of each group the other way (error <= scale) until the
            group's errors add up to at most half a step, so that inputs with a mean, such as
            those behind a ReLU, do not shift the output (the channel step of SQuant, 2202.07471).
            Float types are rounded to nearest.
        short_scale: Round scales to 11 bits first, so that float16 can store them. This costs no
            accuracy worth the name: the codes are chosen for the rounded scale.

    Raises:
        ValueError: A weight is NaN, infinite, or beyond 2**127.
    """
    weights = np.asarray(weights)
    if weights.size == 0:
        raise ValueError("no weights to quantize")
    axes = tuple(axis % weights.ndim for axis in axes)
    along = _chunk_axis(weights, axes)
    if along is None:
        return _quantize(weights, dtype, axes, symmetric, clip, rounding, short_scale)
    step = max(1, _CHUNK * weights.shape[along] // weights.size)
    parts = [
        _quantize(
            weights[(slice(None),) * along + (slice(at, at + step),)],
            dtype,
            axes,
            symmetric,
            clip,
            rounding,
            short_scale,
        )
        for at in range(0, weights.shape[along], step)
    ]
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return Quantized(
        np.concatenate([part.codes for part in parts], along),
        np.concatenate([part.scale for part in parts], along),
        np.concatenate(zeros, along) if zeros else None,
        dtype,
    )


def signs(weights: npt.NDArray[np.floating], axes: tuple[int, ...]) -> Array:
    """For each group -1 or 1: times it, the largest of its weights is negative."""
    positive = weights.max(axes, keepdims=True) > -weights.min(axes, keepdims=True)
    found: Array = np.where(positive, np.float32(-1), np.float32(1))
    return found


def _chunk_axis(weights: npt.NDArray[np.floating], axes: tuple[int, ...]) -> int | None:
    """The longest axis that can be cut without cutting through a scale's weights."""
    free = [axis for axis in range(weights.ndim) if axis not in axes]
    return max(free, key=lambda axis: weights.shape[axis], default=None)


def _quantize(
    weights: npt.NDArray[np.floating],
    dtype: Dtype,
    axes: tuple[int, ...],
    symmetric: bool,
    clip: Clip,
    rounding: Rounding,
    short_scale: bool,
) -> Quantized:
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
        values = weights.astype(np.float32, copy=False)
    lowest, highest = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        raise ValueError("holds NaN or infinity")
    if max(-lowest.min(), highest.max()) > LARGEST:
        raise ValueError("holds values so large that rounding them may overflow")
    symmetric = symmetric or is_float(dtype)
    scale, zero = _parameters(lowest, highest, dtype, symmetric, short_scale)
    if clip == "mse":
        apart = [axis for axis in range(values.ndim) if axis not in axes]
        rows = np.ascontiguousarray(values.transpose(apart + list(axes)))
        rows = rows.reshape(lowest.size, -1)
        share = _best_shares(rows, lowest, highest, dtype, symmetric, short_scale)
        share = share.reshape(lowest.shape)
        scale, zero = _parameters(lowest * share, highest * share, dtype, symmetric, short_scale)
    if is_float(dtype):
        return Quantized(floats.encode(values / scale, dtype), scale, None, dtype)
    kind = np.uint8 if dtype.startswith("u") else np.int8
    if rounding == "balanced":
        exact = values / scale
        exact += zero
        codes = np.clip(np.rint(exact), *RANGES[dtype])
        _balance(codes, np.subtract(codes, exact, out=exact), axes, dtype)
    else:
        codes = _codes(values, scale, zero, dtype)
    has_zero = dtype.startswith("u") or not symmetric
    return Quantized(codes.astype(kind), scale, zero.astype(kind) if has_zero else None, dtype)


def _best_shares(
    rows: Array, lowest: Array, highest: Array, dtype: Dtype, symmetric: bool, short_scale: bool
) -> Array:
    """The share of its full range with about the least squared error, for each group.

    Every fourth range is tried, until two in a row are worse, then those between the best of them
    and its neighbours: the error is within .3 % of that of the best of all on normal and on
    heavy-tailed weights.

    Args:
        rows: Weights, [groups, weights of a group].
        lowest: The least of each group; of any shape, like ``highest``.
        highest: The largest.
        dtype: Type of the codes.
        symmetric: Whether zero is the middle of the range.
        short_scale: Whether scales are rounded.
    """
    lowest, highest = lowest.reshape(-1, 1), highest.reshape(-1, 1)
    full = _parameters(lowest, highest, dtype, symmetric, short_scale)[0]
    space = np.empty_like(rows, order="C"), np.empty_like(rows, order="C")

    def errors(groups: npt.NDArray[np.intp], place: npt.NDArray[np.intp] | int) -> Array:
        """Of some groups, each with a range of its own."""
        some = slice(None) if groups.size == len(rows) else groups
        share = _CLIPS[place].reshape(-1, 1)
        grid = _parameters(
            lowest[some] * share, highest[some] * share, dtype, symmetric, short_scale
        )
        # In steps of the full range: squares of weights themselves may overflow.
        ratio = np.minimum(grid[0] / full[some], 1)[:, 0]
        error = _squared_error(rows[some], *grid, dtype, space) * np.square(ratio)
        # A scale too small to use became 1.
        return np.where(grid[0] <= full[some], error[:, None], np.inf)[:, 0]

    patience = _PATIENCE if BITS[dtype] > 2 else len(_CLIPS)
    ahead = np.arange(len(rows))
    best, least = np.zeros(len(rows), np.intp), errors(ahead, 0)
    for place in range(_COARSE, len(_CLIPS), _COARSE):
        error = errors(ahead, place)
        better = error < least[ahead]
        chosen = ahead[better]
        best[chosen], least[chosen] = place, error[better]
        ahead = ahead[place - best[ahead] < patience]
    step = _COARSE
    while step > 1:
        step //= 2
        middle = best.copy()
        for places in (middle - step, middle + step):
            inside = np.flatnonzero((places >= 0) & (places < len(_CLIPS)))
            error = errors(inside, places[inside])
            better = error < least[inside]
            chosen = inside[better]
            best[chosen], least[chosen] = places[chosen], error[better]
    return _CLIPS[best]


def _parameters(
    lowest: Array, highest: Array, dtype: Dtype, symmetric: bool, short_scale: bool
) -> tuple[Array, Array]:
    """Scale and zero point that cover [lowest, highest] and represent 0 exactly."""
    first, last = RANGES[dtype]
    if symmetric:
        middle = (first + last + 1) // 2
        reach = np.maximum(-lowest, highest).astype(np.float32)
        scale = usable(reach / np.float32(last - middle), short_scale)
        return scale, np.full_like(scale, middle)
    lowest, highest = np.minimum(lowest, 0), np.maximum(highest, 0)
    # Divided before they are subtracted: the difference of two large weights may overflow.
    steps = np.float32(last - first)
    scale = usable(highest / steps - lowest / steps, short_scale)
    return scale, np.clip(np.rint(first - lowest / scale), first, last).astype(np.float32)


def usable(scale: Array, short: bool) -> Array:
    """Scales that can be divided by: a group of zeros has none, and a subnormal one overflows.

    Args:
        scale: Not negative.
        short: Round them to what float16 holds exactly, as far as its range goes.
    """
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
    if not short:
        return scale
    # Down to 2**-18 even subnormal numbers of float16 are fine enough, when they are rounded up so
    # that the range still covers every weight.
    held = (scale >= 2.0**-18) & (scale <= np.finfo(np.float16).max)
    rounded = np.where(held, scale, 1).astype(np.float16)
    rounded = np.where(rounded < scale, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return np.where(held, rounded.astype(np.float32), scale)


def _codes(values: Array, scale: Array, zero: Array, dtype: Dtype) -> Array:
    first, last = RANGES[dtype]
    codes: Array = np.divide(values, scale, out=np.empty_like(values))
    if is_float(dtype):
        return floats.decode(floats.encode(codes, dtype), dtype)
    np.rint(codes, out=codes)
    codes += zero
    return np.clip(codes, first, last, out=codes)


def _balance(codes: Array, error: Array, axes: tuple[int, ...], dtype: Dtype) -> None:
    """Turn roundings in ``codes`` until the errors of each group add up to about nothing.

    Args:
        codes: Rounded; changed in place.
        error: ``codes`` less what was rounded; used up.
        axes: Axes of a group.
        dtype: The codes' type.
    """
    order = [axis for axis in range(codes.ndim) if axis not in axes] + list(axes)
    group = int(np.prod([codes.shape[axis] for axis in axes]))
    rows = codes.transpose(order).reshape(-1, group)
    # Only what is rounded: a code at the end of the range is off by more, and must stay there.
    first, last = RANGES[dtype]
    error = error.transpose(order).reshape(-1, group)
    error[np.abs(error) > 0.5] = 0
    total = error.sum(1, keepdims=True)
    direction = np.sign(total)
    # Errors that pull the sum most are those closest to being rounded the other way.
    error *= direction
    needed = np.rint(np.abs(total)).astype(np.int64)
    # Rows that need about as many go together, so that what becomes of one depends on no other.
    width = 1 << np.ceil(np.log2(np.maximum(needed[:, 0], 1))).astype(np.int64)
    for most in np.unique(width[needed[:, 0] > 0]):
        row = np.flatnonzero((width == most) & (needed[:, 0] > 0))
        least = group - min(int(most), group - 1)
        column = np.argpartition(error[row], least, axis=1)[:, least:]
        pull = error[row[:, None], column]
        rank = np.argsort(np.argsort(-pull, axis=1, kind="stable"), axis=1)
        turned = (rank < needed[row]) & (pull > 0)
        moved = rows[row[:, None], column] - turned * direction[row]
        rows[row[:, None], column] = np.clip(moved, first, last)
    back = rows.reshape([codes.shape[axis] for axis in order]).transpose(np.argsort(order))
    codes[...] = back


def _squared_error(
    rows: Array, scale: Array, zero: Array, dtype: Dtype, space: tuple[Array, Array]
) -> Array:
    """Sum of squared errors of each row, in units of its squared scale.

    Args:
        rows: The weights.
        scale: One for each row, like ``zero``.
        zero: The zero points.
        dtype: Type of the codes.
        space: Two arrays of as many rows or more, which are written over.
    """
    exact, error = (array[: len(rows)] for array in space)
    np.divide(rows, scale, out=exact)
    if is_float(dtype):
        error = floats.decode(floats.encode(exact, dtype), dtype)
    else:
        first, last = RANGES[dtype]
        np.rint(exact, out=error)
        if zero.size and zero.min() == zero.max():  # bounds that are numbers are far quicker
            middle = float(zero.flat[0])
            np.clip(error, first - middle, last - middle, out=error)
        else:
            np.maximum(error, first - zero, out=error)
            np.minimum(error, last - zero, out=error)
    error -= exact
    total: Array = np.einsum("ab,ab->a", error, error)
    return total


def rescaled(
    weights: npt.NDArray[np.floating], stored: Quantized, scale: npt.NDArray[np.floating],
    rounding: Rounding = "rtn",
) -> Quantized:  # fmt: skip
    """The same weights rounded to other scales, in the groups where these differ.

    Args:
        weights: What was quantized.
        stored: Its codes.
        scale: Scales of the shape of ``stored.scale``; 0 keeps what is there.
        rounding: As in :func:`quantize`.
    """
    wanted = np.where(scale > 0, scale, stored.scale).astype(np.float32)
    changed = wanted != stored.scale
    if not changed.any():
        return stored
    zero = np.float32(0) if stored.zero_point is None else stored.zero_point.astype(np.float32)
    kind: Dtype = stored.dtype  # type: ignore[assignment]
    values = weights.astype(np.float32)
    again = _codes(values, wanted, zero, kind)
    if rounding == "balanced":
        axes = tuple(axis for axis, size in enumerate(wanted.shape) if size == 1)
        _balance(again, again - (values / wanted + zero), axes, kind)
    codes = np.where(changed, again, stored.codes).astype(stored.codes.dtype)
    return replace(stored, codes=codes, scale=wanted)


def widened(stored: Quantized, axes: tuple[int, ...]) -> Quantized:
    """The same codes with a scale for each group, where one stood for all.

    Args:
        stored: Codes with scales.
        axes: Axes along which weights share a scale.
    """
    shape = tuple(1 if at in axes else size for at, size in enumerate(stored.codes.shape))
    zero = stored.zero_point
    zero = None if zero is None else np.broadcast_to(zero, shape).copy()
    return replace(stored, scale=np.broadcast_to(stored.scale, shape).copy(), zero_point=zero)


def unsigned(stored: Quantized) -> Quantized:
    """The same values in uint8: codes of int8, and their zero points, 128 higher."""
    zero = np.zeros(stored.scale.shape, np.int8) if stored.zero_point is None else stored.zero_point
    codes, moved = (
        (array.astype(np.int16) + 128).astype(np.uint8) for array in (stored.codes, zero)
    )
    return replace(stored, codes=codes, zero_point=moved, dtype="uint8")


def dequantize(stored: Quantized) -> Array:
    """The weights that a runtime computes with, in float32, of the shape of the codes."""
    if is_float(stored.dtype):
        values = floats.decode(stored.codes.astype(np.uint8, copy=False), stored.dtype)
    else:
        values = stored.codes.astype(np.float32)
    if stored.zero_point is not None:
        values -= stored.zero_point.astype(np.float32)
    values *= stored.scale
    return values


def sqnr_db(weights: npt.NDArray[np.floating], stored: Quantized) -> float:
    """Signal to quantization noise of the whole tensor in dB, a slice at a time.

    Args:
        weights: What was quantized, in the shape in which it was; at least one axis.
        stored: What became of it.
    """
    along = int(np.argmax(weights.shape))
    step = max(1, _CHUNK * weights.shape[along] // weights.size)
    signal = noise = 0.0
    for at in range(0, weights.shape[along], step):
        cut = (slice(None),) * along + (slice(at, at + step),)
        part = replace(
            stored,
            codes=stored.codes[cut],
            scale=stored.scale[cut] if stored.scale.shape[along] > 1 else stored.scale,
            zero_point=None if stored.zero_point is None else stored.zero_point[cut]
            if stored.zero_point.shape[along] > 1 else stored.zero_point,
        )  # fmt: skip
        exact = np.ascontiguousarray(weights[cut], np.float32)
        signal += float(np.vdot(exact, exact))
        error = dequantize(part)
        error -= exact
        noise += float(np.vdot(error, error))
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")
