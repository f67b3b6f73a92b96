"""Rate against distortion: how coarse the grid of each tensor should be, and what its codes cost.

At high rates, noise of a uniform grid of step t costs the outputs ``s t^2``, and halving t costs
one bit a weight. Minimising distortion plus a multiple of the rate makes ``s t^2`` of every tensor
proportional to its number of weights (entropy-constrained quantization, Sullivan 1996): one number,
the squared output error to spend, sets the steps of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import entropy, filters, obs

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

#: A step beyond this many standard deviations would leave next to nothing of a tensor.
_COARSEST = 3.0
_LARGEST = 32767
_ROUNDS = 24


@dataclass(frozen=True)
class Layer:
    """One tensor on its way to a grid.

    Attributes:
        name: Its name.
        weights: [groups, rows, width]: one row holds all that makes one output.
        factors: The factored second moment of each group's inputs; None rounds to nearest.
        sensitivity: Squared output error that a grid of step 1 would cause.
    """

    name: str
    weights: Floats
    factors: tuple[obs.Factor, ...] | None
    sensitivity: float

    @property
    def size(self) -> int:
        """Weights."""
        return self.weights.size

    def codes(self, step: float) -> Codes:
        """Multiples of a step that stand for the weights, in their shape."""
        if self.factors is None:
            return _multiples(self.weights, step)
        grid = obs.uniform(step)
        values = [
            obs.quantize(matrix, known, grid)
            for matrix, known in zip(self.weights, self.factors, strict=True)
        ]
        return _multiples(np.stack(values), step)


def _multiples(values: Floats, step: float) -> Codes:
    codes: Codes = np.rint(values / np.float32(step)).astype(np.int32)
    return codes


def steps(layers: Sequence[Layer], spend: float) -> dict[str, float]:
    """The step of every layer.

    Args:
        layers: Tensors with their sensitivities.
        spend: Squared output error that all of them together may cause, as far as it adds up.

    Returns:
        Step by name; between what keeps codes in 16 bits and what keeps anything at all.
    """
    share = spend / max(sum(layer.size for layer in layers), 1)
    found = {}
    for layer in layers:
        deviation = float(np.sqrt(np.square(layer.weights, dtype=np.float64).mean()))
        largest = float(np.abs(layer.weights).max(initial=0.0))
        floor = max(largest / _LARGEST * 1.5, float(np.finfo(np.float32).tiny))
        step = np.sqrt(share * layer.size / layer.sensitivity) if layer.sensitivity else np.inf
        found[layer.name] = float(np.clip(step, floor, max(_COARSEST * deviation, floor)))
    return found


def entropy_bits(codes: npt.NDArray[np.integer]) -> float:
    """Bits that an ideal order-0 coder needs for all codes, its table included."""
    if not codes.size:
        return 0.0
    low = int(codes.min())
    counts = np.bincount((codes - low).reshape(-1))
    counts = counts[counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / codes.size)).sum()) + 8.0 * counts.size


def packed_bytes(codes: npt.NDArray[np.integer]) -> int:
    """Exact bytes that codes take in a packed sidecar: the entropy coder's streams and tables.

    Args:
        codes: Of the type in which they are stored.
    """
    raw = np.frombuffer(np.ascontiguousarray(codes).tobytes(), np.uint8)
    unit = 8 * codes.dtype.itemsize
    sizes = []
    for choice in entropy.choose(raw, unit, floating=False):
        step = entropy.block_symbols(raw, choice) * unit // 8
        table = 0 if choice.table is None else choice.table.size
        streams = (
            stream
            for start in range(0, raw.size, step)
            for stream in filters.encode(raw[start : start + step], choice.how, choice.table)
        )
        sizes.append(table + sum(len(entropy.deflate(s) or s) for s in streams))
    return min(*sizes, raw.size) if sizes else raw.size


def stored(codes: Codes) -> npt.NDArray[np.int8] | npt.NDArray[np.int16]:
    """Codes in the narrowest type that holds them: int8, int16 for a rare large one."""
    largest = int(np.abs(codes).max(initial=0))
    if largest > _LARGEST:
        raise ValueError(f"codes up to {largest} do not fit 16 bits")
    return codes.astype(np.int8) if largest <= 127 else codes.astype(np.int16)


def largest(meets: Callable[[float], bool], start: float, *, within: float = 1.05) -> float:
    """The largest number that meets a condition which fails from some number on.

    Args:
        meets: The condition; costly.
        start: Where to begin; neighbours are tried at factors of 4.
        within: Factor between the result and a number that fails.

    Returns:
        A number that met the condition, or 0 if none was found.
    """
    low, high = 0.0, float("inf")
    at = start
    for _ in range(_ROUNDS):
        if meets(at):
            low = at
        else:
            high = at
        if low == 0:
            at /= 4
        elif high == float("inf"):
            at *= 4
        elif high <= low * within:
            break
        else:
            at = float(np.sqrt(low * high))
    return low
