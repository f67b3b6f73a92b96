"""Steps, codes and their bytes."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from onnxshrink import sidecar
from onnxshrink.kernels import obs, rate


def layer(name: str, sensitivity: float, *shape: int, seed: int = 0) -> rate.Layer:
    weights = np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32)
    return rate.Layer(name, weights, None, sensitivity)


def test_every_weight_spends_the_same() -> None:
    layers = [layer("a", 2.0, 30, 10), layer("b", 500.0, 5, 20)]
    steps = rate.steps(layers, 0.1)
    spent = [found.sensitivity * steps[found.name] ** 2 / found.size for found in layers]
    assert spent == pytest.approx([0.1 / 400] * 2)
    finer = rate.steps(layers, 0.025)
    assert finer["a"] == pytest.approx(steps["a"] / 2)


def test_steps_are_optimal_among_their_neighbours() -> None:
    """No other split of the same bits (log2 of the steps) has less predicted distortion."""
    layers = [layer("a", 2.0, 30, 10), layer("b", 500.0, 5, 20), layer("c", 9.0, 7, 7)]
    steps = rate.steps(layers, 0.05)

    def distortion(factors: tuple[float, ...]) -> float:
        return sum(
            one.sensitivity * (steps[one.name] * f) ** 2
            for one, f in zip(layers, factors, strict=True)
        )

    best = distortion((1, 1, 1))
    for a, b in itertools.product(np.linspace(-0.5, 0.5, 11), repeat=2):
        c = -(a * layers[0].size + b * layers[1].size) / layers[2].size  # the same bits in all
        assert distortion((2.0**a, 2.0**b, 2.0**c)) >= best * (1 - 1e-12)


def test_steps_have_limits() -> None:
    nothing, everything = layer("a", 1e-30, 8, 8), layer("b", 1e30, 8, 8)
    steps = rate.steps([nothing, everything], 0.01)
    assert steps["a"] == pytest.approx(3 * nothing.weights.std(), rel=0.1)
    assert np.abs(everything.codes(steps["b"])).max() <= 32767
    zeros = rate.Layer("z", np.zeros((1, 4, 4), np.float32), None, 0.0)
    assert not zeros.codes(rate.steps([zeros], 0.1)["z"]).any()


def test_codes_are_multiples_with_and_without_feedback() -> None:
    plain = layer("a", 1.0, 6, 12)
    np.testing.assert_array_equal(plain.codes(0.25), np.rint(plain.weights * 4))
    x = np.random.default_rng(1).standard_normal((50, 12))
    known = obs.factor(x.T @ x)
    fed = rate.Layer("a", plain.weights, (known,), 1.0)
    expected = obs.quantize(plain.weights[0], known, obs.uniform(0.25))
    np.testing.assert_allclose(fed.codes(0.25)[0] * 0.25, expected, atol=1e-7)


@pytest.mark.parametrize("step", [0.02, 0.3, 1.0, 2.5])
def test_bytes_are_those_of_the_sidecar(step: float, tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((300, 700))
    codes = rate.stored(np.rint(values / step).astype(np.int32))
    assert codes.dtype == (np.int16 if step == 0.02 else np.int8)
    name = codes.dtype.name.upper()
    with sidecar.Writer(tmp_path / "a.pack", data_name="a.data") as writer:
        entry = writer.add("w", name, codes.shape, codes.tobytes())
        writer.finish()
    assert rate.packed_bytes(codes) == entry.packed
    ideal = rate.entropy_bits(codes) / 8
    assert 0.97 * ideal < entry.packed < (1.2 if codes.itemsize == 2 else 1.06) * ideal


def test_entropy_of_known_counts() -> None:
    codes = np.repeat([-1, 0, 1, 2], [1, 4, 2, 1]).astype(np.int32)
    expected = 1 * 3 + 4 * 1 + 2 * 2 + 1 * 3
    assert rate.entropy_bits(codes) == pytest.approx(expected + 8 * 4)
    assert rate.entropy_bits(np.zeros(0, np.int32)) == 0


def test_codes_beyond_16_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 16 bits"):
        rate.stored(np.array([40000], np.int32))


@pytest.mark.parametrize("limit", [1e-6, 0.019, 0.02, 3.0, 1e5])
def test_largest_finds_the_limit(limit: float) -> None:
    tried = []

    def meets(value: float) -> bool:
        tried.append(value)
        return value <= limit

    found = rate.largest(meets, 0.02)
    assert limit / 1.05 <= found <= limit
    assert len(tried) <= 24
    assert rate.largest(lambda value: False, 1.0) == 0
