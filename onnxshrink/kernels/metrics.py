"""How far one model's outputs are from another's.

Rules that hold for every figure:

* Floats of any width are compared as float64. Places where both have NaN, or the same infinity,
  count as equal and are left out of norms. A NaN or infinity on one side only makes the error
  infinite, and so do shapes that differ.
* Integers, booleans and strings are labels: their relative error is the fraction that is unequal.
* Empty arrays agree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxshrink.kernels.classes import Classes, classes
from onnxshrink.kernels.hearing import as_heard, length_drift, spectral_distance
from onnxshrink.kernels.probabilities import (
    are_probabilities,
    as_log_probabilities,
    is_discrete,
)
from onnxshrink.kernels.slices import Piece, Slices, pieces

_LONG_ROW = 8  # numbers that are scores of classes, or an embedding, rather than measures
_CLEARLY = 1.1  # times as wrong as the whole: of slices that are all alike none is to blame
_PIECE = 2**19  # elements that are looked at together: one row of a large vocabulary, or several

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OutputComparison:
    """How far one output is from its reference, over all feeds.

    Attributes:
        name: The output.
        elements: Values compared.
        relative_error: L2 norm of the difference over the L2 norm of the reference; for labels
            the fraction that is unequal.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to its reference value, where that is not zero.
        sqnr_db: Signal to noise ratio in decibels; infinite without any error.
        cosine: Cosine of the angle between the outputs; blind to scale.
        likeness: The cosine, less what the lengths differ: 1 - |x - y|^2 / (|x|^2 + |y|^2), the
            coefficient of identity of Zegers and ten Berge (1985). Equal lengths give the cosine,
            labels the fraction that is equal.
        top1: Fraction of rows (along the axis of the classes: see
            :mod:`onnxshrink.kernels.classes`) whose largest value is at the same place, for labels
            the fraction that is equal; None without at least two classes.
        kl: Mean Kullback-Leibler divergence of the rows, in nats; None where ``top1`` has no rows.
        outside: Values further from the reference than ``atol + rtol * |reference|``.
        reshaped: Of the first pair that differs in shape: both shapes; else empty.
        silent: Why likeness to the reference says nothing; else empty.
        worst: The largest relative error of any slice along an axis of fixed length, or that of
            the whole where none is clearly worse; see :mod:`onnxshrink.kernels.slices`. Classes
            whose probabilities add up to 1 are no slices.
        slice: Which slice, ``[:, 4]``; empty for the whole.
        worst_input: The largest relative error of a single feed; one whose answer is smaller than
            usual is held against the usual size. 0 for labels.
        spectrum_db: Of sounds, whose errors are those of magnitudes as heard: the mean log-spectral
            distance; see :mod:`onnxshrink.kernels.hearing`.
        drift: Of sounds: by how much of its length one is longer or shorter, at most.
        vectors: Whether it is rows of many numbers of one kind, as scores and embeddings are.
    """

    name: str
    elements: int
    relative_error: float
    max_abs: float
    max_rel: float
    sqnr_db: float
    cosine: float
    likeness: float
    top1: float | None
    kl: float | None
    outside: int
    reshaped: str = ""
    silent: str = ""
    worst: float = 0.0
    slice: str = ""
    vectors: bool = False
    worst_input: float = 0.0
    spectrum_db: float | None = None
    drift: float | None = None

    def to_dict(self) -> dict[str, object]:
        """The figures for JSON, which has no infinity: those become None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


class Agreement:
    """Adds up pairs of reference and other, so that figures over many feeds need one at a time.

    Args:
        atol: Absolute tolerance of :attr:`outside`.
        rtol: Tolerance of :attr:`outside` relative to the reference.
        stacked: Whether the first axis is of fixed length, and not the batch.
        by_rows: Whether :attr:`top1` and :attr:`kl` are all that is asked for.
        state: Whether the last axis are units of a state: nothing reads these one by one.
    """

    def __init__(
        self, *, atol: float = 0.0, rtol: float = 0.0, stacked: bool = False, by_rows: bool = False,
        state: bool = False,
    ):  # fmt: skip
        self._atol, self._rtol, self._by_rows = atol, rtol, by_rows
        self._discrete = self._broken = False
        self._unequal = self._rows = 0
        self._error = self._signal = self._power = self._dot = self._agreeing = self._kl = 0.0
        self.elements = 0
        self.outside = 0
        self.reshaped = ""
        self._silence = Silence()
        self._slices = Slices(stacked)
        self._state = state
        self._long_rows = True
        self._classes: Classes | None = None
        self._shared: int | None = None  # the axis along which values are shares of a whole
        self._feeds: list[tuple[float, float]] = []  # squares of errors and of signals
        self.max_abs = 0.0
        self.max_rel = 0.0

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, reference: ArrayLike, other: ArrayLike) -> None:
        """Take in one more pair."""
        reference, other = np.asarray(reference), np.asarray(other)
        self.elements += reference.size
        self._silence.add(reference)
        if reference.shape != other.shape:
            self.reshaped = self.reshaped or f"{reference.shape} -> {other.shape}"
            self._break(reference.size)
            return
        if is_discrete(reference):
            self._discrete = True
            self._unequal += int(np.count_nonzero(reference != other))
        if self._classes is None and reference.ndim and reference.size and not self._discrete:
            self._classes = classes(narrow := _narrow(reference))
            if are_probabilities(narrow, self._classes.axis):
                self._shared = self._classes.axis
        axis = reference.ndim - 1 if self._classes is None else self._classes.axis
        sums = np.zeros(2)
        for piece in pieces(reference.shape, _PIECE, axis):
            both = (reference, other) if piece is None else (piece.of(reference), piece.of(other))
            sums += self._add_piece(*_as_floats(*both), piece)
        self._long_rows &= reference.ndim in (2, 3) and reference.shape[-1] >= _LONG_ROW
        self._feeds.append((float(sums[0]), float(sums[1])))
        self._error += self._feeds[-1][0]
        self._signal += self._feeds[-1][1]

    def _add_piece(self, x: Floats, y: Floats, piece: Piece | None) -> tuple[float, float]:
        """Take in a part of a pair; the squares of its errors and of its reference."""
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        finite = np.isfinite(x) & np.isfinite(y)
        if not (same | finite).all():
            self._break(int(np.count_nonzero(~(same | finite))))
        self._add_rows(x, y)
        if self._by_rows:
            return 0.0, 0.0
        plain = bool(finite.all())
        difference = y - x if plain else np.where(finite, y - x, 0.0)
        if not self._discrete and x.size:
            self._slices.add(x if plain else np.where(finite, x, 0.0), difference, piece)
        x, y, difference = (z.ravel() if plain else z[finite] for z in (x, y, difference))
        difference = np.abs(difference)
        self._power += float(y @ y)
        self._dot += float(x @ y)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        size = np.abs(x)
        relative = difference[size > 0] / size[size > 0]
        self.max_rel = max(self.max_rel, float(relative.max(initial=0.0)))
        self.outside += int(np.count_nonzero(~(difference <= self._atol + self._rtol * size)))
        return float(difference @ difference), float(x @ x)

    def _break(self, elements: int) -> None:
        self._broken = True
        self.outside += elements
        self.max_abs = self.max_rel = math.inf

    def _add_rows(self, x: Floats, y: Floats) -> None:
        """Top-1 and divergence, for rows of at least two classes."""
        if self._discrete or x.ndim == 0 or not x.size:
            return
        self._classes = self._classes or classes(x)
        x, y = map(self._classes.rows, (x, y))
        if x.shape[-1] < 2:
            return
        nan_x, nan_y = np.isnan(x), np.isnan(y)
        spoiled = (nan_y & ~nan_x).any(axis=1)
        pairs = ((x, nan_x), (y, nan_y))
        top_x, top_y = (np.where(nan, -np.inf, z) if nan.any() else z for z, nan in pairs)
        # Where the reference has ties, any of its maxima will do.
        chosen = np.take_along_axis(top_x, top_y.argmax(axis=1)[:, None], axis=1)[:, 0]
        self._rows += len(x)
        self._agreeing += int(np.count_nonzero((chosen == top_x.max(axis=1)) & ~spoiled))
        if not self._broken:
            self._kl += float(_divergences(x, y).sum())

    @property
    def relative_error(self) -> float:
        """See :class:`OutputComparison`."""
        if self._broken:
            return math.inf
        if self._discrete:
            return self._unequal / max(self.elements, 1)
        if self._error == 0:
            return 0.0
        too_much = self._signal == 0 or math.isinf(self._error)
        return math.inf if too_much else math.sqrt(self._error / self._signal)

    @property
    def worst_input(self) -> float:
        """See :class:`OutputComparison`."""
        if self._broken or self._discrete or not self._signal:
            return 0.0
        usual = self._signal / len(self._feeds)
        return math.sqrt(max(error / max(signal, usual) for error, signal in self._feeds))

    @property
    def sqnr_db(self) -> float:
        """See :class:`OutputComparison`."""
        if not self._broken and self._error == 0:
            return math.inf
        too_much = self._broken or self._signal == 0 or math.isinf(self._error)
        return -math.inf if too_much else 10 * math.log10(self._signal / self._error)

    @property
    def cosine(self) -> float:
        """See :class:`OutputComparison`; 1 for two zero vectors, 0 where nothing can be said."""
        if self._broken:
            return 0.0
        if self._error == 0:
            return 1.0
        norms = math.sqrt(self._signal) * math.sqrt(self._power)
        return min(1.0, max(-1.0, self._dot / norms)) if norms else 0.0

    @property
    def likeness(self) -> float:
        """See :class:`OutputComparison`; 1 for two zero vectors, 0 where nothing can be said."""
        if self._broken or math.isinf(self._error):
            return 0.0
        if self._discrete:
            return 1 - self._unequal / max(self.elements, 1)
        return 1 - self._error / (self._signal + self._power) if self._error else 1.0

    @property
    def top1(self) -> float | None:
        """See :class:`OutputComparison`."""
        if self._broken and not self._rows:
            return 0.0
        if self._discrete:
            return 1 - self._unequal / max(self.elements, 1)
        return self._agreeing / self._rows if self._rows else None

    @property
    def kl(self) -> float | None:
        """See :class:`OutputComparison`."""
        if not self._rows:
            return None
        return math.inf if self._broken else self._kl / self._rows

    def result(self, name: str) -> OutputComparison:
        """All figures under the output's name."""
        worst, place = self.relative_error, ""
        # That a class next to never is likely is no thing of its own: its share is nothing.
        together = {self._shared, self._slices.rank - 1 if self._state else None}
        sliced, where = self._slices.worst(but=together)
        if sliced > _CLEARLY * worst:
            worst, place = sliced, where
        vectors = self._long_rows and not self._discrete and self._slices.alike
        return OutputComparison(
            name, self.elements, self.relative_error, self.max_abs, self.max_rel, self.sqnr_db,
            self.cosine, self.likeness, self.top1, self.kl, self.outside,
            self.reshaped, self._silence.reason, worst, place, vectors,
            self.worst_input,
        )  # fmt: skip


class Silence:
    """Whether all arrays of an output are such that likeness to them says nothing.

    One that is empty, or has one value wherever it is looked at, is kept by a model that is broken
    as well. A single number is not known to be always the same.
    """

    def __init__(self) -> None:
        self._elements = 0
        self._first: Any = None
        self._varies = False

    def add(self, array: np.ndarray) -> None:
        """Take in one more array."""
        if not array.size or self._varies:
            return
        if self._elements == 0:
            self._first = array.flat[0]
        self._elements += array.size
        differs = array != self._first
        if array.dtype.kind == "f" and np.isnan(self._first):
            differs = ~np.isnan(array)
        self._varies = bool(np.any(differs))

    @property
    def reason(self) -> str:
        """What is the matter, to follow the output's name; empty where nothing is."""
        if self._varies or self._elements == 1:
            return ""
        if self._elements == 0:
            return "is empty"
        if isinstance(self._first, str | bytes):
            return f"is {self._first!r} throughout"
        return f"is {float(self._first) + 0:g} throughout"  # -0 + 0 is 0


def _as_floats(reference: np.ndarray, other: np.ndarray) -> tuple[Floats, Floats]:
    """Both as float64; strings as 0, and 1 where they differ."""
    if reference.dtype.kind in "SUOT":
        return np.zeros(reference.shape), np.asarray(reference != other, np.float64)
    return reference.astype(np.float64), other.astype(np.float64)


def _narrow(array: np.ndarray) -> Floats:
    """Floats to tell what they are by: a large array is not copied for it."""
    small = array.size <= _PIECE or array.dtype.kind != "f"
    return array.astype(np.float64) if small else array


def _divergences(x: Floats, y: Floats) -> Floats:
    """KL(x || y) of each row; 0 for rows that softmax cannot take in (NaN, +inf)."""
    given = are_probabilities(x)
    log_p, log_q = (as_log_probabilities(z, given) for z in (x, y))
    log_q -= log_p
    np.exp(log_p, out=log_p)
    rows: Floats = -np.einsum("ij,ij->i", log_p, log_q)
    return np.maximum(np.nan_to_num(rows), 0.0)  # rounding can take it below


def _pair(reference: ArrayLike, other: ArrayLike) -> Agreement:
    agreement = Agreement()
    agreement.add(reference, other)
    return agreement


def relative_error(reference: ArrayLike, other: ArrayLike) -> float:
    """L2 norm of the difference over that of the reference.

    A reference of zeros gives 0 when ``other`` is zero too, else infinity. Labels (integers,
    booleans, strings) give the fraction that is unequal.
    """
    return _pair(reference, other).relative_error


def max_abs(reference: ArrayLike, other: ArrayLike) -> float:
    """Largest absolute difference."""
    return _pair(reference, other).max_abs


def max_rel(reference: ArrayLike, other: ArrayLike) -> float:
    """Largest difference relative to its reference value, where that is not zero."""
    return _pair(reference, other).max_rel


def sqnr_db(reference: ArrayLike, other: ArrayLike) -> float:
    """Signal to quantization noise ratio in decibels: ``-20 log10`` of the relative error."""
    return _pair(reference, other).sqnr_db


def cosine(reference: ArrayLike, other: ArrayLike) -> float:
    """Cosine of the angle between the two, flattened."""
    return _pair(reference, other).cosine


def likeness(reference: ArrayLike, other: ArrayLike) -> float:
    """The cosine, less what the lengths differ: 1 for equal arrays only, -1 for opposite ones."""
    return _pair(reference, other).likeness


def top1_agreement(reference: ArrayLike, other: ArrayLike) -> float:
    """Fraction of rows along the last axis whose maximum is at one of the reference's maxima.

    Labels give the fraction that is equal; rows of fewer than two classes always agree.
    """
    top1 = _pair(reference, other).top1
    return 1.0 if top1 is None else top1


def kl(reference: ArrayLike, other: ArrayLike) -> float:
    """Mean KL(reference || other) of the rows along the last axis, in nats.

    Rows that are not probabilities (non-negative, sum 1) go through softmax first. Probabilities
    count as at least 1e-12, so that the divergence is finite.
    """
    divergence = _pair(reference, other).kl
    return 0.0 if divergence is None else divergence


def quantiles(arrays: Iterable[np.ndarray], many: int = 1024) -> Floats:
    """The distribution of all values of some arrays: quantiles in even steps, ascending.

    The L2 distance of those of two samples is the Wasserstein distance of their distributions.
    """
    values = np.concatenate([np.zeros(0), *(np.asarray(a, float).reshape(-1) for a in arrays)])
    if not values.size:
        return values
    found: Floats = np.quantile(values, (np.arange(many) + 0.5) / many)
    return found


def differing(
    names: Sequence[str],
    once: Sequence[Sequence[np.ndarray]],
    again: Sequence[Sequence[np.ndarray]],
) -> dict[str, float]:
    """Outputs that two runs of one model on the same feeds disagree on, and by how much.

    Returns:
        The distance of the distributions of their values, relative to their size (L2).
    """
    rows = compare_outputs(names, once, again)
    loose = [row.name for row in rows if row.worst > 0]
    rows = compare_outputs(names, once, again, random=loose)
    return {row.name: row.relative_error for row in rows if row.name in loose}


def compare_outputs(
    names: Sequence[str],
    reference_runs: Iterable[Sequence[np.ndarray]],
    other_runs: Iterable[Sequence[np.ndarray]],
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    stacked: Collection[str] = (),
    random: Collection[str] = (),
    states: Collection[str] = (),
    sounds: Collection[str] = (),
) -> tuple[OutputComparison, ...]:
    """Compare the outputs of two models, each output over all feeds.

    Args:
        names: Names of the outputs.
        reference_runs: For each feed, the reference's outputs in the order of ``names``.
        other_runs: The other's, for the same feeds.
        atol: Absolute tolerance of ``OutputComparison.outside``.
        rtol: Its relative tolerance.
        stacked: Names of outputs whose first axis is of fixed length, and not the batch.
        random: Names of outputs of which distributions are compared, over all feeds, not values.
        states: Names of outputs that the next run goes on from.
        sounds: Names of outputs that are waveforms.
    """
    agreements = [
        Agreement(atol=atol, rtol=rtol, stacked=name in stacked, state=name in states)
        for name in names
    ]
    heard: dict[str, list[tuple[float, float]]] = {}
    pooled: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for reference, other in zip(reference_runs, other_runs, strict=True):
        for name, agreement, x, y in zip(names, agreements, reference, other, strict=True):
            if name in random:
                pooled.setdefault(name, ([], []))[0].append(x)
                pooled[name][1].append(y)
            elif name in sounds:
                heard.setdefault(name, []).append((spectral_distance(x, y), length_drift(x, y)))
                agreement.add(*as_heard(x, y))
            else:
                agreement.add(x, y)
    for name, agreement in zip(names, agreements, strict=True):
        if name in pooled:
            agreement.add(*map(quantiles, pooled[name]))
    rows = [a.result(name) for a, name in zip(agreements, names, strict=True)]
    for place, name in enumerate(names):
        if name in heard:
            decibels, drifts = zip(*heard[name], strict=True)
            mean = math.fsum(decibels) / len(decibels)
            rows[place] = replace(rows[place], spectrum_db=mean, drift=max(drifts))
    return tuple(rows)
