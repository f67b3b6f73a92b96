"""The patches of its input that a convolution multiplies its kernel with (im2col)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]
Floats = npt.NDArray[np.float32]

_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input; one number for each spatial axis.

    Attributes:
        kernel: Sizes of the kernel.
        strides: Steps between windows.
        dilations: Distances between the taps of a window.
        pads: Zeros before every axis, then after every axis, as ONNX has them.
        groups: Groups of input channels that see kernels of their own.
        auto_pad: ONNX's rule that takes the place of ``pads``.
        spacing: Distances to which the values of its input are drawn apart, zeros between them, as
            a transposed convolution has it; empty where they are not.
        flipped: Whether taps count from the end of the kernel.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1
    auto_pad: AutoPad = "NOTSET"
    spacing: tuple[int, ...] = ()
    flipped: bool = False

    def padding(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Zeros before and after each spatial axis of an input of these sizes."""
        rank = len(self.kernel)
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        if self.auto_pad == "NOTSET":
            return list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        found = []
        for size, kernel, stride, dilation in zip(
            sizes, self.kernel, self.strides, self.dilations, strict=True
        ):
            reach = dilation * (kernel - 1) + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return found


def sample(
    images: npt.NDArray[np.floating], window: Window, most: int, seed: int
) -> Iterator[Floats]:
    """Patches at evenly spread places, all of them where there are no more than ``most``.

    Args:
        images: [batch, channels, *sizes]; axes before them count as batch.
        window: How the convolution moves.
        most: How many places to take.
        seed: Shifts the places, so that every call sees others.

    Yields:
        [places, groups, channels / groups * kernel] in the order of a kernel's flattened axes.

    Raises:
        ValueError: The input has too few axes, or is smaller than the window.
    """
    rank = len(window.kernel)
    if images.ndim < rank + 2:
        raise ValueError(f"a {rank}-D convolution of an input of shape {images.shape}")
    images = _spaced(images.reshape(-1, *images.shape[-rank - 1 :]), window.spacing)
    batch, channels, *sizes = images.shape
    padding = window.padding(tuple(sizes))
    reach = [d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
    counts = [
        (size + before + after - span) // stride + 1
        for size, (before, after), span, stride in zip(
            sizes, padding, reach, window.strides, strict=True
        )
    ]
    if min(counts) < 1:
        raise ValueError(f"an input of shape {images.shape} is smaller than the kernel")
    padded = images
    if any(before or after for before, after in padding):
        padded = np.pad(images, [(0, 0), (0, 0), *padding])
    axes = tuple(range(2, rank + 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    taps: tuple[Any, ...] = (..., *(slice(None, None, step) for step in window.dilations))
    windows = windows[taps]
    if window.flipped:
        windows = np.flip(windows, tuple(range(-rank, 0)))
    places = spread(batch * math.prod(counts), most, seed)
    width = channels * math.prod(window.kernel)
    step = max(1, _CHUNK_BYTES // (4 * width))
    for start in range(0, places.size, step):
        where, *at = np.unravel_index(places[start : start + step], (batch, *counts))
        corner = (a * s for a, s in zip(at, window.strides, strict=True))
        place: tuple[Any, ...] = (where, slice(None), *corner)
        found = windows[place].astype(np.float32)
        yield found.reshape(len(found), window.groups, width // window.groups)


def _spaced(images: npt.NDArray[np.floating], spacing: tuple[int, ...]) -> npt.NDArray[Any]:
    """Images with zeros between their values."""
    if set(spacing) <= {1}:
        return images
    sizes = [(n - 1) * step + 1 for n, step in zip(images.shape[2:], spacing, strict=True)]
    wide = np.zeros((*images.shape[:2], *sizes), images.dtype)
    places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in spacing))
    wide[places] = images
    return wide


def spread(total: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """At most ``most`` of the numbers below ``total``, evenly spread, shifted by the seed."""
    if total <= most:
        return np.arange(total)
    shift = (seed * 0.6180339887) % 1  # the golden ratio leaves no two seeds close
    return ((np.arange(most) + shift) * (total / most)).astype(np.int64)
