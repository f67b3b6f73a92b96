"""Scales and codes that fit the bulk of the weights and let outliers go, without any data.

Half-quadratic quantization (HQQ, Badri and Shaji, 2023) minimises ``|W - W_q|^p`` with p below 1,
which forgives a few large errors for the sake of many small ones. The norm is split off with an
auxiliary variable E: E is found by shrinking the error, then the grid is fitted to ``W - E``. HQQ
moves a zero point that is a float; ours are codes, so it is the scale that is fitted here, in
closed form.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels.affine import RANGES, Quantized, usable

Array = npt.NDArray[np.float32]

_NORM = 0.7
_BETA, _GROWTH = 10.0, 1.05  # how strongly E is held to the error, and its growth at every turn
_TURNS = 20


def refit(
    weights: npt.NDArray[np.floating], stored: Quantized, axes: tuple[int, ...], *, short: bool
) -> Quantized:
    """A grid and codes whose p-norm error is no larger than those given, group by group.

    Args:
        weights: What was quantized, in the shape in which it was.
        stored: A first grid and its codes.
        axes: Axes along which weights share a scale.
        short: Keep scales to what float16 holds.
    """
    assert stored.dtype != "int16"
    values = np.asarray(weights, np.float32)
    zero = np.zeros_like(stored.scale)
    if stored.zero_point is not None:
        zero = stored.zero_point.astype(np.float32)
    first, last = RANGES[stored.dtype]
    scale = stored.scale
    codes = np.clip(np.rint(values / scale + zero), first, last)

    def lost(codes: Array, scale: Array) -> Array:
        error: Array = (np.abs(values - (codes - zero) * scale) ** _NORM).sum(axes, keepdims=True)
        return error

    best_scale, best_codes, least = scale, codes, lost(codes, scale)
    size = np.abs(values).mean(axes, keepdims=True)  # the shrinking is in units of the weights
    unit = np.where(size > 0, size, 1)
    beta = _BETA
    for _ in range(_TURNS):
        error = (values - (codes - zero) * scale) / unit
        magnitude = np.abs(error)
        shrunk = magnitude - (_NORM / beta) * np.maximum(magnitude, 1e-8) ** (_NORM - 1)
        outlying = np.sign(error) * np.maximum(shrunk, 0) * unit
        centred = codes - zero
        power = np.square(centred).sum(axes, keepdims=True)
        along = (centred * (values - outlying)).sum(axes, keepdims=True)
        fitted = np.where(power > 0, along / np.maximum(power, 1), scale)
        scale = usable(np.where(fitted > 0, fitted, scale).astype(np.float32), short=short)
        codes = np.clip(np.rint(values / scale + zero), first, last)
        found = lost(codes, scale)
        better = found < least
        least = np.where(better, found, least)
        best_scale = np.where(better, scale, best_scale)
        best_codes = np.where(better, codes, best_codes)
        beta *= _GROWTH
    return Quantized(
        best_codes.astype(stored.codes.dtype), best_scale, stored.zero_point, stored.dtype
    )
