"""How far one waveform is from another to the ear: by magnitudes over time, not by phase."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_WINDOWS = (256, 1024)  # samples: short for onsets, long for tones
_OVERLAPPING = 4
_FLOOR = 1e-3  # of the largest magnitude: 60 dB below it nothing is heard
_LOUDEST = 1.5  # of a waveform, whose samples are mostly within 1
_DECIBELS = 20 / math.log(10)


def spectral_distance(reference: np.ndarray, other: np.ndarray) -> float:
    """The log-spectral distance of two sounds, in decibels: 1 is hardly heard.

    Root mean square of the difference of short-time magnitudes in decibels, in the mean of two
    lengths of windows. Phase does not count. Of sounds of different length the shorter is
    stretched; see :func:`length_drift`. That 1 dB is the limit of what is heard is from coding of
    speech (Paliwal and Atal, Efficient vector quantization of LPC parameters, 1993).

    Args:
        reference: Samples, in any shape.
        other: The same.
    """
    x, y = _samples(reference), _samples(other)
    if not (len(x) and len(y)):
        return 0.0 if len(x) == len(y) else math.inf
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.inf
    largest, found = float(np.abs(x).max()), []
    for window in _WINDOWS:
        a, b = (_logarithms(z, window, largest) for z in (x, y))
        b = b[np.rint(np.linspace(0, len(b) - 1, len(a))).astype(int)]
        found.append(_DECIBELS * math.sqrt(float(np.square(a - b).mean())))
    return float(np.mean(found))


def length_drift(reference: np.ndarray, other: np.ndarray) -> float:
    """By how much of its length one sound is longer or shorter than the other."""
    mine, its = reference.size, other.size
    return abs(its - mine) / max(mine, 1)


def as_heard(reference: np.ndarray, other: np.ndarray) -> tuple[Floats, Floats]:
    """Two arrays whose relative error is that of magnitudes as heard, or the drift if that is more.

    So a sound is held to limits as other values are. 1 dB is an error of .122.
    """
    decibels = spectral_distance(reference, other)
    error = max(10 ** (min(decibels, 200) / 20) - 1, length_drift(reference, other))
    return np.array([[1.0], [0.0]]), np.array([[1.0 + error], [0.0]])


def is_sound(arrays: list[np.ndarray]) -> bool:
    """Whether all arrays can be waveforms: one row around zero each, in the mean a long one."""
    if not all(a.dtype.kind == "f" and a.ndim and a.size == a.shape[-1] for a in arrays):
        return False
    whole = np.concatenate([_samples(array) for array in arrays] or [np.zeros(0)])
    if whole.size < _WINDOWS[-1] * len(arrays) or not np.isfinite(whole).all():
        return False
    return bool(abs(whole.mean()) <= 0.1 * whole.std() and np.abs(whole).max() <= _LOUDEST)


def _samples(array: np.ndarray) -> Floats:
    return np.asarray(array, np.float64).reshape(-1)


def _logarithms(samples: Floats, window: int, largest: float) -> Floats:
    """Logarithms of magnitudes, [frames, frequencies]."""
    padded = np.pad(samples, (window // 2, window))
    starts = np.arange(0, len(samples), window // _OVERLAPPING)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[starts]
    shape = np.hanning(window)
    magnitudes = np.abs(np.fft.rfft(frames * shape))
    floor = _FLOOR * largest * shape.sum() / 2
    found: Floats = np.log(np.maximum(magnitudes, floor or 1.0))
    return found
