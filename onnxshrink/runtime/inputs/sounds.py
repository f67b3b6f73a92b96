"""Sounds, brought to the rate, the length and the axes that a model takes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.kernels import sounds
from onnxshrink.reading import Reading
from onnxshrink.runtime.inputs.ports import Feed, Found, Port

SUFFIXES = (".wav",)
_SOUND = (
    "audio", "input_values", "waveform", "wav", "speech", "signal", "samples", "sound", "input",
    "x",
)  # fmt: skip
_RATES = ("sr", "rate", "sample_rate", "sampling_rate")
_LENGTHS = ("length", "lengths", "input_length", "input_lengths", "audio_length", "audio_lengths")


class Sounds:
    """Makes feeds of .wav files.

    A sound of more samples than the model takes, or than were asked for, is several inputs, one
    after the other; the last is filled with silence where the length is fixed.

    Args:
        wanted: The model's inputs; one takes sound, others may take its rate and its length.
        reading: What the user says of them.
    """

    def __init__(self, wanted: Mapping[str, Port], reading: Reading):
        self._wanted = wanted
        self._reading = reading
        self._last_rate = reading.rate or 1

    def read(self, file: Path) -> Iterator[Found]:
        """Feeds of a file."""
        try:
            rate, samples = sounds.decoded(file.read_bytes())
        except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise DataError(f"{file}: not a .wav that can be read: {error}") from error
        wanted = self._last_rate = self._reading.rate or rate
        if wanted != rate:
            samples = sounds.resampled(samples, rate, wanted)
        mono = samples.mean(axis=1, dtype=np.float32)
        fixed = self._length
        length = fixed or self._reading.max_length or max(len(mono), 1)
        for start in range(0, len(mono), length):
            part = mono[start : start + length]
            if fixed:
                part = np.pad(part, (0, fixed - len(part)))
            yield (
                f"{file}, from {start / wanted:.2f} s",
                functools.partial(self._feed, part, wanted),
            )

    def _feed(self, samples: np.ndarray, rate: int) -> Feed:
        port = self.port
        if port.dtype.kind == "i":
            samples = np.rint(samples * np.iinfo(port.dtype).max)
        feed = {port.name: _shaped(samples.astype(port.dtype), port)}
        known = {**dict.fromkeys(_RATES, rate), **dict.fromkeys(_LENGTHS, len(samples))}
        for name, other in self._wanted.items():
            value = known.get(name)
            if name != port.name and value is not None and other.dtype.kind in "iuf":
                feed[name] = np.full([1] * len(other.dims or ()), value, other.dtype)
        return feed

    def shown(self, feed: Feed) -> Iterator[tuple[str, bytes]]:
        """The sound of a feed."""
        samples = feed[self.port.name].astype(np.float32).reshape(-1)
        if self.port.dtype.kind == "i":
            samples /= np.iinfo(self.port.dtype).max
        yield ".wav", sounds.encoded(samples, self._last_rate)

    @functools.cached_property
    def port(self) -> Port:
        """The input that takes sound.

        Raises:
            DataError: None does, or it is not told which.
        """
        floats = [
            port for port in self._wanted.values()
            if (port.dtype.kind == "f" or port.dtype == np.int16) and port.dims != ()
        ]  # fmt: skip
        named = [port for port in floats if port.name.lower() in _SOUND]
        found = floats if len(floats) == 1 else named
        if len(found) != 1 or len(found[0].dims or (1,)) > 3:
            inputs = ", ".join(f"{port.name} {port.shown_dims}" for port in self._wanted.values())
            raise DataError(
                f"sounds fit no input of the model, or several: {inputs}; features such as "
                "spectrograms are given as .npz"
            )
        return found[0]

    @property
    def _length(self) -> int | None:
        """The samples that the input takes, where it takes a fixed number of them."""
        return self.port.fixed(_time_axis(self.port))


def _time_axis(port: Port) -> int:
    """The axis along which time goes: the last but for a channel behind it."""
    return -2 if len(port.dims or ()) == 3 and port.fixed(-1) == 1 else -1


def _shaped(samples: np.ndarray, port: Port) -> np.ndarray:
    shape = [1] * len(port.dims or (1,))
    shape[_time_axis(port)] = len(samples)
    return samples.reshape(shape)
