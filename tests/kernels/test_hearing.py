"""Sounds are compared by what is heard: magnitudes, not phase."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxshrink.kernels.hearing import as_heard, is_sound, length_drift, spectral_distance
from onnxshrink.kernels.metrics import compare_outputs

RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal(16000)
TIME = np.arange(16000) / 16000
TONE = np.sin(2 * np.pi * 440 * TIME) * np.sin(2 * np.pi * 2 * TIME)


def test_a_gain_is_as_many_decibels_whatever_the_sound() -> None:
    for decibels in (0.0, 1.0, 3.0):
        other = NOISE * 10 ** (decibels / 20)
        assert spectral_distance(NOISE, other) == pytest.approx(decibels, abs=0.02)
        heard = as_heard(NOISE, other)
        error = np.linalg.norm(heard[1] - heard[0]) / np.linalg.norm(heard[0])
        assert error == pytest.approx(10 ** (decibels / 20) - 1, abs=0.003)


def test_phase_is_not_heard_and_another_pitch_is() -> None:
    turned = np.cos(2 * np.pi * 440 * TIME) * np.sin(2 * np.pi * 2 * TIME)
    assert np.linalg.norm(turned - TONE) > np.linalg.norm(TONE)
    assert spectral_distance(TONE, -TONE) == 0
    assert spectral_distance(TONE, turned) < 1
    other = np.sin(2 * np.pi * 660 * TIME) * np.sin(2 * np.pi * 2 * TIME)
    assert spectral_distance(TONE, other) > 5


def test_lengths_are_a_figure_of_their_own() -> None:
    longer = np.concatenate([TONE, TONE[:800]])
    assert length_drift(TONE, longer) == pytest.approx(0.05)
    before, after = as_heard(TONE, longer)
    assert (after - before).max() >= 0.05
    (row,) = compare_outputs(
        ("audio",), [[TONE], [TONE]], [[TONE], [longer]], sounds={"audio"}
    )  # fmt: skip
    assert row.drift == pytest.approx(0.05)
    assert not row.reshaped
    assert row.worst_input == pytest.approx((after - before).max())
    assert row.spectrum_db == pytest.approx(spectral_distance(TONE, longer) / 2)
    assert not row.silent
    assert math.isinf(spectral_distance(TONE, np.full(16000, np.nan)))
    assert math.isinf(spectral_distance(TONE, TONE[:0]))


def test_what_a_waveform_is() -> None:
    assert is_sound([TONE.astype(np.float32)[None, None]])
    assert not is_sound([np.abs(TONE)])
    assert not is_sound([TONE.reshape(2, -1)])
    assert not is_sound([TONE[:100]])
