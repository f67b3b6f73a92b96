"""Rate against distortion: how coarse the grid of each tensor should be, and what its codes cost.

At high rates, noise of a uniform grid of step t costs the outputs ``s t^2``, and halving t costs
one bit a weight. Minimising distortion plus a multiple of the rate makes ``s t^2`` of every tensor
proportional to its number of weights (entropy-constrained quantization, Sullivan 1996): one number,
the squared output error to spend, sets the steps of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import affine, entropy, filters, obs

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]

#: A step beyond this many standard deviations leaves next to nothing of a tensor. Redundant ones
#: do with little: most layers of a small CNN were at the limit when it was 3.
_COARSEST = 6.0
#: Gains are multiples of this, so that the order in which a CPU adds up does not show in them.
_GAIN = 2.0**-16
_LARGEST = 32767
_LARGEST_SHORT = 127
_ESCAPE_BYTES = 6  # of a large code that is kept apart: its place and its value
_ESCAPE_NODES = 400  # bytes of the nodes that put large codes back, about
_TABLE = 256  # kinds of codes that the coder takes whole; of more it takes the bytes
_WORSE = 1.01  # what codes may take packed so that they take half as much unpacked
_ROUNDS = 24
_ABOVE_ENTROPY = 1.05  # coded bytes over the entropy, about, between 1 and 6 bits
_NOTHING = 1e-12
#: A row's step is its share of the lookups to minus this power. High-rate theory has 1/2; rare rows
#: say more of their input than common ones, and 1/4 was best on held-out inputs.
_FLATTENED = 0.25
_MOST_HALVES = 6


@dataclass(frozen=True)
class GridTensor:
    """One tensor on its way to a grid.

    Attributes:
        name: Its name.
        weights: [groups, rows, width]: one row holds all that makes one output.
        factors: The factored second moment of each group's inputs; None rounds to nearest.
        sensitivity: Squared output error that a grid of step 1 would cause.
        relative: [rows]: steps of the rows of one table, in steps of the layer; None: all alike.
        within: Of weights that are whole numbers, and stay so: the least and the largest one, to
            be broadcast; None: they are any floats.
    """

    name: str
    weights: Floats
    factors: tuple[obs.Factor, ...] | None
    sensitivity: float
    relative: Floats | None = None
    within: tuple[Floats, Floats] | None = None

    @property
    def size(self) -> int:
        """Weights."""
        return self.weights.size

    def possible(self, step: float) -> float:
        """The nearest step that it can have: whole numbers stand on whole steps."""
        return step if self.within is None else max(round(step), 1)

    def scales(self, step: float) -> Floats:
        """What codes are multiplied with, [1, rows, 1]; those of rows are exact in float16."""
        if self.relative is None:
            return np.full((1, 1, 1), step, np.float32)
        return affine.usable(np.float32(step) * self.relative[None, :, None], short=True)

    def codes(self, step: float) -> Codes:
        """Multiples of a step that stand for the weights, in their shape."""
        if self.within is not None:
            low, high = (limit / step for limit in self.within)
            codes = _multiples(self.weights, self.scales(step))
            return np.clip(codes, np.ceil(low), np.floor(high)).astype(np.int32)
        if self.factors is None:
            return _multiples(self.weights, self.scales(step))
        grid = obs.uniform(step)
        values = [
            obs.quantize(matrix, known, grid)
            for matrix, known in zip(self.weights, self.factors, strict=True)
        ]
        return _multiples(np.stack(values), self.scales(step))

    def values(self, codes: Codes, step: float) -> Floats:
        """What codes stand for, once their step is :meth:`unbiased`."""
        return codes * self.scales(self.unbiased(codes, step))

    def unbiased(self, codes: Codes, step: float) -> float:
        """The step with which codes stand for weights that are neither shrunk nor blown up.

        Coarse grids round most weights to zero, and what shrinks in every layer is lost at the
        end of all. So the step takes a gain, ``<W, W> / <W, Q>``, in the inner product of the
        inputs' second moment, which makes ``<W, Q> = <W, W>``. (The gain of least squares,
        ``<W, Q> / <Q, Q>``, is best for one layer, and shrinks.) Without a second moment nothing
        tells what outputs see, and a gain must at least bring the values closer to the weights.

        Args:
            codes: What :meth:`codes` gave for the step.
            step: The step that they were rounded to.

        Returns:
            The step, as it was where the gain would do more harm than leaving the weights out, and
            of whole numbers.
        """
        if self.within is not None:
            return step
        values, factors = codes * self.scales(step), self.factors or [None] * len(codes)
        sums = np.zeros(3)
        for exact, rounded, known in zip(self.weights, values, factors, strict=True):
            w, q = exact, rounded
            if known is not None:
                w, q = (part[:, known.order] @ known.upper for part in (w, q))
            pairs = (w, w), (w, q), (q, q)
            sums += [np.einsum("ij,ij->", *pair, dtype=np.float64) for pair in pairs]
        ww, wq, qq = (float(total) for total in sums)
        if wq <= 0 or ww * qq > 2 * wq**2:
            return step
        gain = round(ww / wq / _GAIN) * _GAIN
        if self.factors is None and (gain**2 - 1) * qq >= 2 * (gain - 1) * wq:
            return step
        return step * gain


def _multiples(values: Floats, scales: Floats) -> Codes:
    codes: Codes = np.rint(values / scales).astype(np.int32)
    return codes


def relative_steps(lookups: npt.NDArray[np.integer]) -> Floats | None:
    """Steps of a table's rows, finer for those that are looked up often.

    Few inputs look up few rows of a large vocabulary. So the share of each row is its count, mixed
    with a power law of its number, as vocabularies are sorted, fitted to the counts; the weight of
    the law is that of rows seen once (Good and Turing's estimate of what was not seen at all).

    Args:
        lookups: How often each row was looked up.

    Returns:
        Powers of the square root of 2 whose geometric mean is about 1; None where all are alike.
    """
    total, rows = int(lookups.sum()), lookups.size
    if total == 0:
        return None
    number = np.arange(rows)
    laws = [
        -exponent * np.log(number + shift)
        for exponent in (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)
        for shift in rows * np.geomspace(1e-3, 1, 7) + 1
    ]
    laws = [law - np.log(np.exp(law - law.max()).sum()) - law.max() for law in laws]
    law = np.exp(max(laws, key=lambda law: float(lookups @ law)))
    unseen = max(int((lookups == 1).sum()), 1) / total
    share = (1 - unseen) * lookups / total + unseen * law
    octaves = -_FLATTENED * np.log2(share)
    halves = np.rint(2 * (octaves - octaves.mean())).clip(-_MOST_HALVES, _MOST_HALVES)
    steps: Floats = np.exp2(halves / 2).astype(np.float32)
    return None if (steps == steps[0]).all() else steps


def doubted(layers: Sequence[GridTensor], rows: int) -> list[GridTensor]:
    """Layers to which the outputs are at least a little sensitive, as most layers are.

    A layer that did not matter on any of a few inputs may decide on the next one (attention to what
    was always masked, a branch): the chance is about one in ``rows + 2`` (Laplace's rule of
    succession), and then it matters as much as the median layer.

    Args:
        layers: Tensors with their sensitivities.
        rows: On how many inputs these were measured.
    """
    powers = [float(np.square(layer.weights, dtype=np.float64).mean()) for layer in layers]
    pairs = [(layer, power) for layer, power in zip(layers, powers, strict=True)]
    effects = [layer.sensitivity * power for layer, power in pairs if power]
    least = float(np.median(effects)) / (rows + 2) if effects else 0.0
    return [
        replace(layer, sensitivity=max(layer.sensitivity, least / power)) if power else layer
        for layer, power in pairs
    ]


def steps(
    layers: Sequence[GridTensor], spend: float, coarsest: float = _COARSEST
) -> dict[str, float]:
    """The step of every layer.

    Args:
        layers: Tensors with their sensitivities.
        spend: Squared output error that all of them together may cause, as far as it adds up.
        coarsest: The largest step, in standard deviations of the tensor.

    Returns:
        Step by name; between what keeps codes in 16 bits and what keeps anything at all.
    """
    share = spend / max(sum(layer.size for layer in layers), 1)
    found = {}
    for layer in layers:
        weights = layer.weights
        if layer.relative is not None:
            weights = weights / layer.relative[:, None]
        deviation = float(np.sqrt(np.square(weights, dtype=np.float64).mean()))
        largest = float(np.abs(weights).max(initial=0.0))
        floor = max(largest / _LARGEST * 1.5, float(np.finfo(np.float32).tiny))
        step = np.sqrt(share * layer.size / layer.sensitivity) if layer.sensitivity else np.inf
        step = float(np.clip(step, floor, max(coarsest * deviation, floor)))
        found[layer.name] = layer.possible(step)
    return found


def entropy_bits(codes: npt.NDArray[np.integer]) -> float:
    """Bits that an ideal order-0 coder needs for all codes, its table included."""
    if not codes.size:
        return 0.0
    low = int(codes.min())
    counts = np.bincount((codes.astype(np.int64) - low).reshape(-1))
    counts = counts[counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / codes.size)).sum()) + 8.0 * counts.size


def packed_bytes(codes: npt.NDArray[np.integer]) -> int:
    """Bytes that codes take in a packed sidecar: the entropy coder's streams and tables.

    Exact, but for the few large codes of int16 that are kept apart, which are counted whole.

    Args:
        codes: Of the type in which they are stored.
    """
    if codes.dtype == np.int16 and (apart := escaped(codes)) is not None:
        return _packed(apart.codes) + _escapes(apart.places.size)
    return _packed(codes)


def coded_bytes(codes: npt.NDArray[np.integer]) -> int:
    """Bytes that codes take in a coded model, about: what levels take above the entropy is known.

    Args:
        codes: Of the type in which they are stored.
    """
    if codes.dtype == np.int16 and (apart := escaped(codes)) is not None:
        return coded_bytes(apart.codes) + _escapes(apart.places.size)
    return min(round(_ABOVE_ENTROPY * entropy_bits(codes) / 8), codes.nbytes)


def _packed(codes: npt.NDArray[np.integer]) -> int:
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
    """Codes in the narrowest type that holds them: int8, int16 for large ones.

    Raises:
        ValueError: Some do not fit 16 bits.
    """
    largest = int(np.abs(codes).max(initial=0))
    if largest > _LARGEST:
        raise ValueError(f"codes up to {largest} do not fit 16 bits")
    return codes.astype(np.int8 if largest <= _LARGEST_SHORT else np.int16)


@dataclass(frozen=True)
class Escaped:
    """Codes in int8, and the few that do not fit.

    Attributes:
        codes: int8; at the places of large codes, the largest of their sign.
        places: Where those are in the flattened array, ascending.
        large: Their values.
    """

    codes: npt.NDArray[np.int8]
    places: npt.NDArray[np.int32]
    large: npt.NDArray[np.int16]


def escaped(codes: npt.NDArray[np.integer]) -> Escaped | None:
    """Take rare large codes out, where that packs at least about as well.

    Unpacked, it takes half as much; and 16 bits of more than 256 kinds pack badly.

    Args:
        codes: Of 16 bits.
    """
    flat = codes.reshape(-1)
    places = np.flatnonzero(np.abs(flat) > _LARGEST_SHORT)
    if flat.size > np.iinfo(np.int32).max:
        return None
    narrow = np.clip(codes, -_LARGEST_SHORT, _LARGEST_SHORT).astype(np.int8)
    if ideal_bytes(narrow) + _escapes(places.size) > _WORSE * ideal_bytes(codes):
        return None
    return Escaped(narrow, places.astype(np.int32), flat[places].astype(np.int16))


def ideal_bytes(codes: npt.NDArray[np.integer]) -> float:
    """What codes pack to, about, without packing them."""
    low = int(codes.min(initial=0))
    kinds = np.count_nonzero(np.bincount((codes.astype(np.int64) - low).reshape(-1)))
    if kinds <= _TABLE:
        return entropy_bits(codes) / 8
    raw, unit = np.ascontiguousarray(codes).reshape(-1).view(np.uint8), 8 * codes.dtype.itemsize
    return entropy.ideal_bits(raw, entropy.plain(unit, floating=False).how) / 8


def _escapes(count: int) -> int:
    return _ESCAPE_BYTES * count + _ESCAPE_NODES


def largest(
    cost: Callable[[float], float], start: float, *, within: float = 1.05, apart: float = 4.0
) -> float:
    """The largest number whose cost is at most 1, for costs that grow with it.

    Args:
        cost: What a number costs; it takes long to find out.
        start: Where to begin.
        within: Factor between the result and a number that costs more.
        apart: Factor between the neighbours that are tried at first.

    Returns:
        A number that was found to cost at most 1, or 0 if there was none.
    """
    low, high = -np.inf, np.inf  # logarithms, as all that follows
    below = above = 0.0  # of what they cost
    at, reach = float(np.log(start)), float(np.log(within))
    for turn in range(_ROUNDS):
        found = float(np.log(max(cost(float(np.exp(at))), _NOTHING)))
        if found <= 0:
            low, below = at, found
        else:
            high, above = at, found
        if np.isinf(low) or np.isinf(high):
            at += np.log(apart) if found <= 0 else -np.log(apart)
            continue
        if high - low <= reach:
            break
        # Costs are about powers: the line through both ends. Every third turn halves what is left,
        # and no guess comes so close to an end that it could not close the interval.
        share = 0.5 if turn % 3 == 2 else -below / (above - below)
        edge = min(0.9 * reach, 0.5 * (high - low))
        at = min(max(low + share * (high - low), low + edge), high - edge)
    return 0.0 if np.isinf(low) else float(np.exp(low))
