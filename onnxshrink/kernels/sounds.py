"""Sounds: what a .wav holds, and other rates of it."""

from __future__ import annotations

import io
import math

import numpy as np


def decoded(data: bytes) -> tuple[int, np.ndarray]:
    """What a .wav holds.

    Args:
        data: Its bytes: PCM of 8 to 32 bits, or floats.

    Returns:
        Samples a second, and samples of -1 to 1: float32, [frames, channels].

    Raises:
        ValueError: It is no .wav, or of a kind that is not known.
    """
    from scipy.io import wavfile

    rate, samples = wavfile.read(io.BytesIO(data))
    if samples.dtype.kind in "iu":
        bits = 8 * samples.dtype.itemsize
        middle = 2 ** (bits - 1) if samples.dtype.kind == "u" else 0
        samples = (samples.astype(np.float64) - middle) / 2 ** (bits - 1)
    if samples.ndim == 1:
        samples = samples[:, None]
    return int(rate), samples.astype(np.float32)


def encoded(samples: np.ndarray, rate: int) -> bytes:
    """A .wav of 16 bits.

    Args:
        samples: Of -1 to 1, [frames]; what is beyond is cut off.
        rate: Samples a second.
    """
    from scipy.io import wavfile

    file = io.BytesIO()
    wavfile.write(file, rate, np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16))
    return file.getvalue()


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Sounds at another rate, without what it cannot hold (a polyphase filter).

    Args:
        samples: [frames] or [frames, channels].
        rate: Samples a second.
        wanted: Those that there should be.
    """
    from scipy.signal import resample_poly

    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    found: np.ndarray = resample_poly(samples, wanted // common, rate // common, axis=0)
    return found.astype(samples.dtype)
