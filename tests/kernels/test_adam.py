"""Adam against its recurrence, written out for one number."""

from __future__ import annotations

import numpy as np

from onnxshrink.kernels.adam import Adam


def test_it_is_the_recurrence_of_the_paper() -> None:
    numbers, units = {"a": np.array([1.0, -2.0])}, {"a": np.array([1.0, 0.5])}
    adam, mean, square, at = Adam(numbers, units), 0.0, 0.0, numbers["a"].copy()
    for step, gradient in enumerate(([3.0, -1.0], [1.0, 4.0], [-2.0, 0.5]), 1):
        slope = np.array(gradient) * units["a"]
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        at -= 0.1 * units["a"] * (mean / (1 - 0.9**step)) / np.sqrt(square / (1 - 0.999**step))
        adam.step({"a": np.array(gradient)}, 0.1)
        np.testing.assert_allclose(numbers["a"], at, rtol=1e-12)


def test_numbers_of_any_size_find_the_bottom_of_a_bowl() -> None:
    numbers = {"a": np.array([1e-4, 3e-4]), "b": np.array([50.0])}
    adam = Adam(numbers, {name: np.abs(each) for name, each in numbers.items()})
    bottom = {"a": np.array([2e-4, 2e-4]), "b": np.array([40.0])}
    for step in range(2000):
        adam.step({name: numbers[name] - bottom[name] for name in numbers}, 0.02 * 0.995**step)
    for name, wanted in bottom.items():
        np.testing.assert_allclose(numbers[name], wanted, rtol=1e-3)
