"""How much of a model's answers is left, in one number that a search can steer by."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxshrink.kernels import detections, hearing, ties
from onnxshrink.kernels.kinds import Kind, Known, decide
from onnxshrink.kernels.metrics import Agreement
from onnxshrink.kernels.perplexity import foretells, surprise
from onnxshrink.kernels.probabilities import are_logarithms, are_probabilities
from onnxshrink.kernels.promise import CONFIDENCE, ratio_at_most, share_at_least

Figure = Literal["agreement", "likeness", "error", "divergence", "perplexity", "matched"]
Measure = Literal["auto", "agreement", "cosine"]
Outputs = Sequence[Sequence[np.ndarray]]
Floats = npt.NDArray[np.float64]

_IN_DOUBT = 3.0  # times as many answers may change where it is not known that they are answers
_HEARD = 2.5  # times the error of values may be that of magnitudes: 1 dB for .05
_FEW = 2.0  # times what two or three inputs show may be what others do
_LOST = 700.0  # nats above which exp overflows
_EXACT = 1e-9  # nothing may be lost: this much may
_UNLIKELY = 1e-12  # probability below which the divergence knows no difference


class Estimate(NamedTuple):
    """A figure over some inputs.

    Attributes:
        name: Which one.
        figure: What they show.
        careful: The end of its interval that is worse; unbounded where they are too few.
        units: How many rows or inputs it rests on.
        counted: Of an agreement the same by nothing but the count, which knows of no noise. Of
            matched detections only this is an interval: some dozens of boxes could promise nothing.
    """

    name: Figure
    figure: float
    careful: float
    units: int
    counted: float = 1.0

    def strain(self, limit: float) -> float:
        """The share of what may be lost that is lost, with care."""
        more = self.name in ("agreement", "likeness", "matched")
        lost, may = (1 - self.careful, 1 - limit) if more else (self.careful, limit)
        return max(lost, 0.0) / max(may, _EXACT) if lost == lost else math.inf

    def told(self) -> Estimate:
        """The same with a rule of thumb for a careful end, where so few inputs tell none."""
        if math.isfinite(self.careful):
            return self
        lost = 1 - self.figure if self.name == "likeness" else self.figure
        return self._replace(careful=1 - _FEW * lost if self.name == "likeness" else _FEW * lost)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be lost of outputs, by their kind.

    Attributes:
        agreement: Least share of rows of classes, and of labels, that keep their answer.
        likeness: Least likeness of embeddings; see ``OutputComparison``.
        error: Largest relative error of values, of any slice.
        divergence: Largest mean divergence of tokens, in nats.
    """

    agreement: float = 0.99
    likeness: float = 0.99
    error: float = 0.05
    divergence: float = 0.05

    def asked(self, kind: Kind) -> dict[Figure, float]:
        """What is asked of an output of some kind: figure -> limit."""
        agreement: dict[Figure, float] = {"agreement": self.agreement}
        likeness: dict[Figure, float] = {"likeness": self.likeness}
        asked: dict[Kind, dict[Figure, float]] = {
            "labels": agreement,
            "classes": agreement,
            "tokens": {**agreement, "divergence": self.divergence},
            "embeddings": likeness,
            "vectors": {**likeness, "agreement": 1 - _IN_DOUBT * (1 - self.agreement)},
            "values": {"error": self.error},
            "states": {},
            "detections": {"matched": self.agreement},
            "audio": {"error": _HEARD * self.error},
        }
        return asked[kind]


class Fidelity:
    """Compares answers with those of a reference, output by output, over all feeds.

    Args:
        reference: For each feed, the outputs of the reference.
        measure: What to hold outputs of floats to: ``agreement`` takes all that have rows of two or
            more for classes, ``cosine`` all for values whose scale does not matter.
        others: The same for more feeds, which nothing else will be run on: how close the reference
            comes to ties there counts too.
        kinds: What the outputs are; by default what their values say.
        stacked: Numbers of outputs whose first axis is of fixed length, and not the batch.
        labels: For each feed the tokens that follow, where they are known.
    """

    def __init__(
        self, reference: Outputs, measure: Measure = "auto", others: Outputs = (),
        kinds: Sequence[Known] | None = None, stacked: Collection[int] = (),
        labels: Sequence[np.ndarray | None] = (),
    ):  # fmt: skip
        self._reference = reference
        self._others = others
        self._stacked = stacked
        self._labels = labels
        self._free_scale = measure == "cosine"
        self._found_given: dict[int, bool] = {}  # see _given
        self._found_leads: dict[int, list[Floats]] = {}  # of the others
        self._found_dilution: dict[int, float] = {}
        count = len(reference[0]) if reference else 0
        arrays = [[feed[i] for feed in reference] for i in range(count)]
        if kinds is None:
            kinds = [decide("", each) for each in arrays]
        pairs = zip(kinds, arrays, strict=True)
        self.kinds = [_measured_by(measure, known, each) for known, each in pairs]

    @property
    def has_classes(self) -> bool:
        """Whether any output is classes."""
        return any(known.kind in ("classes", "tokens") for known in self.kinds)

    def distortion(self, outputs: Outputs) -> float:
        """A squared distance that grows smoothly with the noise in a model, summed over outputs.

        The divergence of probabilities and of their logarithms, else the squared relative error.
        """
        total = 0.0
        for i, known in enumerate(self.kinds):
            if known.kind == "states":
                continue
            if known.kind == "detections":
                total += (1 - self._matched(outputs, i)[0]) ** 2
                continue
            divergence = self._agreement(outputs, i, by_rows=True).kl if self._diverges(i) else None
            if divergence is None:
                divergence = self._agreement(outputs, i).relative_error ** 2
            total += divergence
        return total

    def directions(self, rng: np.random.Generator) -> Iterator[dict[int, Floats]]:
        """Random directions that tell the distortion of small noise from its part along them.

        The sum over feeds of the squares of ``sum(direction * noise)``, where all outputs of a feed
        add up, is the distortion in the mean over directions, to second order in the noise
        (Hutchinson's estimator of a trace).

        Args:
            rng: Chooses the signs.

        Yields:
            For each feed of the reference, the direction of every output that counts, by its number
            and in its shape. Labels have none, nor have zeros.
        """
        units: dict[int, float] = {}
        for i, known in enumerate(self.kinds):
            arrays = [known.rows(feed[i]) for feed in self._reference]
            silent = known.kind in ("labels", "states", "detections")
            if silent or any(a.dtype.kind != "f" for a in arrays):
                continue
            rows = sum(a.size // max(a.shape[-1], 1) for a in arrays if a.ndim)
            power = math.fsum(np.square(a, dtype=np.float64).sum() for a in arrays)
            if 0 < power < math.inf:
                units[i] = math.sqrt(2 * rows if self._diverges(i) else power)
        for feed in self._reference:
            found = {}
            for i, unit in units.items():
                array = self.kinds[i].rows(feed[i])
                along: Floats = rng.choice([-1.0, 1.0], array.shape) / unit
                if self._diverges(i):
                    along = _along_shares(array, along)
                axis = self.kinds[i].axis
                found[i] = along if axis == -1 else np.moveaxis(along, -1, axis)
            yield found

    def score(self, outputs: Outputs) -> float:
        """The least of any output, 1 at best: agreement of classes and labels, else likeness.

        Likeness is the cosine, less what the scale is off; the measure ``cosine`` lets scale go.
        Of ``vectors`` likeness is the one; :meth:`strain` holds them to both.
        """
        scores = [1.0]
        for i, known in enumerate(self.kinds):
            if known.kind in ("labels", "classes", "tokens"):
                scores.append(self.agreement(outputs, i))
            elif known.kind == "detections":
                scores.append(self._matched(outputs, i)[0])
            elif known.kind != "states":
                agreement = self._agreement(outputs, i)
                scores.append(agreement.cosine if self._free_scale else agreement.likeness)
        return min(scores)

    def strain(
        self, outputs: Outputs, asked: Sequence[Mapping[Figure, float]],
        confidence: float = CONFIDENCE,
    ) -> float:  # fmt: skip
        """The largest share of what may be lost that is lost, over outputs: above 1 is too much.

        Every figure is taken at the end of its interval that is worse.

        Args:
            outputs: For each feed of the reference.
            asked: For each output, the limits of its figures.
            confidence: Of the intervals.
        """
        found = 0.0
        for i, limits in enumerate(asked):
            for figure, limit in limits.items():
                found = max(
                    found, self.estimate(outputs, i, figure, confidence).told().strain(limit)
                )
        return found

    def agreement(
        self, outputs: Outputs, output: int, confidence: float = CONFIDENCE
    ) -> float:  # fmt: skip
        """The share of rows that will keep their answer, with a confidence.

        See :mod:`onnxshrink.kernels.ties`. What is counted wins where it is lower by more than one
        row. Labels have no leads: of them what is counted is all there is.
        """
        known, counted = self.kinds[output], self._agreement(outputs, output).top1
        if counted is None or known.kind == "labels":
            return 1.0 if counted is None else counted
        dilution = self._dilution(output)
        counted = max(1 - (1 - counted) * dilution, 0.0)
        pairs = [(known.rows(x), known.rows(y)) for x, y in self._pairs(outputs, output)]
        if any(x.shape != y.shape for x, y in pairs):
            return counted
        rows = sum(x.size // x.shape[-1] for x, _ in pairs) / dilution
        noisy = [unit for x, y in pairs if x.size for unit in self._noisy(x, y, output)]
        if output not in self._found_leads:
            others = [known.rows(feed[output]) for feed in self._others]
            leads = [unit for x in others if x.size for unit, _ in self._noisy(x, x, output)]
            self._found_leads[output] = leads
        turned = ties.turned([*(u for u, _ in noisy), *self._found_leads[output]], noisy)
        likely = 1 - dilution * turned.at_most(confidence)
        return float(max(min(likely, counted + 1 / max(rows, 1)), 0.0))

    def _dilution(self, output: int) -> float:
        """See :meth:`Known.dilution`."""
        if output not in self._found_dilution:
            arrays = [feed[output] for feed in (*self._reference, *self._others)]
            self._found_dilution[output] = self.kinds[output].dilution(arrays)
        return self._found_dilution[output]

    def _noisy(self, x: np.ndarray, y: np.ndarray, output: int) -> list[tuple[Floats, Floats]]:
        """Leads and their changes, of each row of the batch, or of each input."""
        before, top = ties.lead(x)
        units = len(x) if x.ndim > 1 and output not in self._stacked else 1
        pair = before, ties.moved(y, before, top)
        return [*zip(*(np.array_split(part, units) for part in pair), strict=True)]

    def estimate(
        self, outputs: Outputs, output: int, figure: Figure, confidence: float = CONFIDENCE
    ) -> Estimate:
        """One figure of one output, and what unseen inputs will keep to with a confidence."""
        if figure == "matched":
            share, units = self._matched(outputs, output)
            least = share_at_least(round(share * units), units, confidence) if units else 1.0
            return Estimate(figure, share, share, units, least)
        agreement = self._agreement(outputs, output)
        pairs = self._pairs(outputs, output)
        if figure == "agreement":
            counted = 1.0 if agreement.top1 is None else agreement.top1
            dilution = self._dilution(output)
            counted = max(1 - (1 - counted) * dilution, 0.0)
            rows = round(_rows(self.kinds[output], pairs) / dilution)
            least = share_at_least(round(counted * rows), rows, confidence) if rows else 1.0
            likely = self.agreement(outputs, output, confidence)
            return Estimate(figure, counted, likely, rows, least)
        if figure == "divergence":
            divergence = agreement.kl or 0.0
            known = self.kinds[output]
            counts = [_rows(known, [pair]) for pair in pairs]  # a prompt has many, a step has one
            each = [_pair_kl(known.rows(x), known.rows(y)) for x, y in pairs]
            most = ratio_at_most(np.multiply(each, counts), counts, confidence)
            return Estimate(figure, divergence, most, len(each))
        if figure == "perplexity":
            return self._rise(pairs, confidence)
        errors, signals, powers = self._sums(pairs, output)
        if figure == "likeness":
            most = ratio_at_most(errors, signals + powers, confidence)
            return Estimate(figure, agreement.likeness, 1 - most, errors.size)
        found = agreement.result("")
        most = ratio_at_most(errors, signals, confidence) ** 0.5
        whole = found.relative_error
        scale = found.worst / whole if 0 < whole < np.inf else 1.0
        return Estimate(figure, found.worst, max(most * scale, found.worst), errors.size)

    def _rise(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], confidence: float) -> Estimate:
        """How much higher the perplexity is, relatively, of the tokens that are known to follow."""
        more, tokens = [], []
        for (x, y), labels in zip(pairs, self._labels or [None] * len(pairs), strict=True):
            if labels is not None and foretells(x, labels) and x.shape == y.shape:
                (before, count), (after, _) = surprise(x, labels), surprise(y, labels)
                more.append(after - before)
                tokens.append(count)
        if not sum(tokens):
            return Estimate("perplexity", math.inf, math.inf, 0)
        most = ratio_at_most(more, tokens, confidence)
        return Estimate(
            "perplexity", math.expm1(sum(more) / sum(tokens)), math.expm1(min(most, _LOST)),
            len(more),
        )  # fmt: skip

    def _sums(
        self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], output: int
    ) -> tuple[Floats, Floats, Floats]:
        """Squared errors, signals and powers of every row, or of every input."""
        found = []
        for x, y in pairs:
            if x.shape != y.shape:
                return np.full(1, np.inf), np.ones(1), np.ones(1)
            units = len(x) if x.ndim and x.size and output not in self._stacked else 1
            a, b = (z.astype(np.float64).reshape(units, -1) for z in (x, y))
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            finite = np.isfinite(a) & np.isfinite(b)
            a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
            error = np.where(same | finite, np.square(a - b), np.inf).sum(axis=1)
            found.append((error, np.square(a).sum(axis=1), np.square(b).sum(axis=1)))
        if not found:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        errors, signals, powers = (np.concatenate(part) for part in zip(*found, strict=True))
        return errors, signals, powers

    def _diverges(self, output: int) -> bool:
        """Whether noise in an output is told by the divergence of its rows."""
        known = self.kinds[output]
        return known.kind == "tokens" or (known.chooses and self._given(output))

    def _given(self, output: int) -> bool:
        """Whether the reference's rows are probabilities or their logarithms."""
        if output not in self._found_given:
            known = self.kinds[output]
            rows = [known.rows(feed[output]) for feed in self._reference if feed[output].size]
            given = all(map(are_probabilities, rows)) or all(map(are_logarithms, rows))
            self._found_given[output] = given
        return self._found_given[output]

    def _pairs(self, outputs: Outputs, output: int) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = [(x[output], y[output]) for x, y in zip(self._reference, outputs, strict=True)]
        sounds = self.kinds[output].kind == "audio"
        return [hearing.as_heard(x, y) for x, y in pairs] if sounds else pairs

    def _matched(self, outputs: Outputs, output: int) -> tuple[float, int]:
        """The share of detections that are found again, and how many there are."""
        where = detections.layout(self._reference, output)
        if where is None:
            return 1.0, 0
        again, total = detections.matched(self._reference, outputs, where)
        return again / max(total, 1) if total else 1.0, total

    def _agreement(self, outputs: Outputs, output: int, by_rows: bool = False) -> Agreement:
        known = self.kinds[output]
        agreement = Agreement(stacked=output in self._stacked, by_rows=by_rows, state=known.state)
        for x, y in self._pairs(outputs, output):
            agreement.add(known.rows(x), known.rows(y))
        return agreement


def _measured_by(measure: Measure, known: Known, arrays: Sequence[np.ndarray]) -> Known:
    if known.kind in ("labels", "states") or measure == "auto":
        return known
    rows = all(array.ndim > 1 and array.shape[-1] > 1 for array in arrays)
    kind: Kind = "classes" if measure == "agreement" and rows else "values"
    return Known(kind, f"by the measure {measure}", blank=known.blank)


def _rows(known: Known, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """Rows of classes, or labels."""
    if known.kind == "labels":
        return sum(x.size for x, _ in pairs)
    rows = (known.rows(x) for x, _ in pairs)
    return sum(x.size // x.shape[-1] for x in rows if x.ndim and x.shape[-1] > 1)


def _along_shares(array: np.ndarray, signs: Floats) -> Floats:
    """Directions whose covariance is the Fisher information of the classes' shares."""
    if are_probabilities(array):
        likely: Floats = np.maximum(array.astype(np.float64), _UNLIKELY)
        return signs / np.sqrt(likely)
    shares: Floats = np.exp(array.astype(np.float64) - array.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    found: Floats = signs * np.sqrt(shares)
    found -= shares * found.sum(axis=-1, keepdims=True)
    return found


def _pair_kl(x: np.ndarray, y: np.ndarray) -> float:
    agreement = Agreement()
    agreement.add(x, y)
    return agreement.kl or 0.0
