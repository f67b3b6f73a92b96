"""What the answers of a model must keep: of every output what its readers read of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from onnxshrink.errors import RecipeError
from onnxshrink.options import check_share

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.kernels.fidelity import Estimate, Fidelity, Figure, Limits, Measure
    from onnxshrink.kernels.kinds import Kind, Known
    from onnxshrink.kernels.metrics import OutputComparison
    from onnxshrink.trials import Answers

Metric = Callable[[list[list["np.ndarray"]]], float]
Preset = Literal["near-lossless", "balanced", "smallest", "fastest"]
#: What is made the best of, inside what the answers must keep: bytes, time, or memory at its peak.
Aim = Literal["size", "latency", "memory"]

#: Agreement, likeness, error and divergence; see ``kernels.fidelity.Limits``.
PRESETS: Mapping[str, tuple[float, float, float, float]] = {
    "near-lossless": (0.998, 0.9995, 0.01, 0.002),
    "balanced": (0.99, 0.99, 0.05, 0.05),
    "smallest": (0.97, 0.97, 0.1, 0.15),
    "fastest": (0.99, 0.99, 0.05, 0.05),
}
#: Fields of a goal that say how much may be lost.
LIMITS = ("min_agreement", "max_error", "max_kl", "max_perplexity_rise", "max_drop")
_WORDS = {
    "agreement": "top-1 agreement", "likeness": "likeness", "error": "relative error",
    "divergence": "divergence", "perplexity": "rise of perplexity",
    "matched": "matched detections",
}  # fmt: skip


@dataclass(frozen=True)
class Promise:
    """What the inputs that nobody had seen say of one figure of one output.

    Attributes:
        output: The name.
        estimate: What it is on these inputs, and what it will be at worst, with the confidence.
        limit: What was asked for.
        confidence: Of the interval.
        wanted: Rows of which a count alone would promise the limit; 0 where none are wanted.
    """

    output: str
    estimate: Estimate
    limit: float
    confidence: float
    wanted: int = 0

    @property
    def strain(self) -> float:
        """The share of what may be lost that is lost, with care; infinite for too few inputs."""
        return self.estimate.strain(self.limit)

    @property
    def refuses(self) -> bool:
        """Whether the limit is not kept, or may not be. Where too few inputs tell, it is not."""
        from math import isfinite

        return isfinite(self.estimate.careful) and not self.strain <= 1

    def __str__(self) -> str:
        from math import isfinite

        figure, found, careful, units, counted = self.estimate
        line = f"{_WORDS[figure]} of {self.output!r} on {units} unseen "
        line += {"agreement": "rows", "matched": "detections"}.get(figure, "inputs or rows")
        line += f": {found:.4g}"
        least = figure in ("agreement", "likeness", "matched")
        if figure == "matched":
            line += f" (at least {counted:.4g} with {100 * self.confidence:.0f} % confidence)"
        elif isfinite(careful):
            side = "at least" if least else "at most"
            if least and careful > found:  # a row too many may be chance
                side = f"of others {side}"
            line += f" ({side} {careful:.4g} with {100 * self.confidence:.0f} % confidence"
            if figure == "agreement" and counted < careful:
                line += f", from how far they are from a tie; {counted:.4g} by the count alone"
            line += ")"
        if not isfinite(careful) or self.refuses:
            line += f"; {self.limit:g} is not promised"
        elif self.wanted > units:
            line += f"; to promise {self.limit:g} by the count takes {self.wanted} unseen rows"
        return line


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the answers must keep.

    With nothing asked for, what ``preset`` says for the kind of each output: by default 99 % of
    the answers of classes and labels, a likeness of .99 of embeddings, both where one cannot tell,
    and an error of .05 of numbers that mean something one by one.

    Attributes:
        min_agreement: Least share of rows whose largest output stays at the same place.
        max_error: Largest relative L2 error of any output.
        max_kl: Largest mean divergence of outputs with classes, in nats.
        max_perplexity_rise: How much higher, relatively, the perplexity of the tokens that follow
            may be.
        max_drop: Largest loss of ``metric``; without one, of top-1 agreement.
        metric: Takes the outputs of every feed, gives a number; higher is better.
        measures: What outputs are, by name, where they should not be told by themselves.
        preset: How much may be lost where none of the above says.
        confidence: That other inputs keep it, too.
    """

    min_agreement: float | None = None
    max_error: float | None = None
    max_kl: float | None = None
    max_perplexity_rise: float | None = None
    max_drop: float | None = None
    metric: Metric | None = None
    measures: Mapping[str, Kind] = field(default_factory=dict)
    preset: Preset = "balanced"
    confidence: float = 0.9

    def __post_init__(self) -> None:
        check_share("min_agreement", self.min_agreement)
        if not self.measures:
            return
        from onnxshrink.kernels.kinds import KINDS

        for name, kind in self.measures.items():
            if kind not in KINDS:
                raise RecipeError(f"measure of {name!r}: takes one of {', '.join(KINDS)}")

    @property
    def limits(self) -> Limits:
        """What may be lost of each kind where nothing else is said."""
        from onnxshrink.kernels.fidelity import Limits

        agreement, likeness, error, divergence = PRESETS[self.preset]
        return Limits(agreement=agreement, likeness=likeness, error=error, divergence=divergence)

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for but what the preset says."""
        return all(getattr(self, name) is None for name in LIMITS)

    @property
    def _only_metric(self) -> bool:
        """Whether nothing but a drop is asked for."""
        names = (name for name in LIMITS if name != "max_drop")
        return all(getattr(self, name) is None for name in names)

    @property
    def asks(self) -> dict[str, object]:
        """What is asked for, by option; what is left to the preset aside."""
        limits = {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}
        measures = {f"measure of {name}": kind for name, kind in self.measures.items()}
        metric = {} if self.metric is None else {"metric": _called(self.metric)}
        return {
            "preset": self.preset, **limits, **metric, **measures, "confidence": self.confidence,
        }  # fmt: skip

    @property
    def by_metric(self) -> bool:
        """Whether a metric decides, and nothing else."""
        return self.metric is not None and self.max_drop is not None

    def metric_strain(self, before: Answers, after: Answers) -> float:
        """The share of what the metric may drop that it drops."""
        if self.metric is None or not self.max_drop:
            return 0.0
        return max(self.metric(before.outputs) - self.metric(after.outputs), 0.0) / self.max_drop

    def kinds(self, answers: Answers) -> dict[str, Known]:
        """What every output is, by name.

        Raises:
            RecipeError: ``measures`` names an output that the model does not have.
        """
        from onnxshrink.kernels.kinds import Known, decide

        if missing := [name for name in self.measures if name not in answers.names]:
            raise RecipeError(
                f"measure of {missing[0]!r}: no such output (outputs: {', '.join(answers.names)})"
            )
        found = {}
        for place, name in enumerate(answers.names):
            arrays = [outputs[place] for outputs in answers.outputs]
            found[name] = decide(name, arrays, answers.tails.get(name))
            if name in self.measures:
                found[name] = Known(self.measures[name], "as you say", blank=found[name].blank)
        boxes = answers.detections
        if boxes is not None and answers.names[boxes.boxes] not in self.measures:
            why = "boxes, with scores and classes, of which there are any number"
            for name in (answers.names[number] for number in boxes.outputs):
                if name not in self.measures:
                    found[name] = Known("states", "the boxes tell of it")
            found[answers.names[boxes.boxes]] = Known("detections", why)
        return found

    def asked(self, before: Answers) -> dict[str, dict[Figure, float]]:
        """The limits of every figure of every output, by name; the metric aside.

        Raises:
            RecipeError: A rise of perplexity is asked for, and nobody knows what tokens follow.
        """
        return self._without_entering(self._asked(before), before)

    def _without_entering(
        self, asked: dict[str, dict[Figure, float]], before: Answers
    ) -> dict[str, dict[Figure, float]]:
        """Where detections are told apart, they are what is asked for, not what enters them."""
        told = any("matched" in limits for limits in asked.values())
        entering = before.names[len(before.names) - before.entering :] if told else ()
        return {name: {} if name in entering else limits for name, limits in asked.items()}

    def _asked(self, before: Answers) -> dict[str, dict[Figure, float]]:
        if self.max_perplexity_rise is not None and not any(
            labels is not None for labels in before.following
        ):
            from onnxshrink.kernels.perplexity import NO_TOKENS

            raise RecipeError(f"max_perplexity_rise: {NO_TOKENS}")
        kinds = self.kinds(before)
        if self.plain or (self.metric is not None and self._only_metric):
            return {name: self.limits.asked(known.kind) for name, known in kinds.items()}
        least = self.min_agreement
        if least is None and self.max_drop is not None and self.metric is None:
            least = 1 - self.max_drop
        choosing = {n for n, known in kinds.items() if known.chooses or known.kind == "labels"}
        found: dict[str, dict[Figure, float]] = {name: {} for name in kinds}
        for name in kinds:
            if kinds[name].kind == "detections":
                found[name] = {"matched": self.limits.agreement if least is None else least}
                continue
            if least is not None and (name in choosing or not choosing):
                found[name]["agreement"] = least
            if self.max_kl is not None and kinds[name].chooses:
                found[name]["divergence"] = self.max_kl
            if self.max_perplexity_rise is not None and kinds[name].kind == "tokens":
                found[name]["perplexity"] = self.max_perplexity_rise
            if self.max_error is not None:
                found[name]["error"] = self.max_error
        return {name: {} if kinds[name].kind == "states" else each for name, each in found.items()}

    def holder(
        self, before: Answers, others: Sequence[Sequence[np.ndarray]] = (),
        measure: Measure = "auto",
    ) -> Fidelity:  # fmt: skip
        """What compares answers with these, each output by its kind.

        Args:
            before: What the original answers to some inputs.
            others: What it answers to more, which no other model will be asked.
            measure: See ``Fidelity``.
        """
        from onnxshrink.kernels.fidelity import Fidelity

        kinds = self.kinds(before)
        stacked = [i for i, name in enumerate(before.names) if name in before.stacked]
        return Fidelity(
            before.outputs, measure, others, kinds=[kinds[name] for name in before.names],
            stacked=stacked, labels=before.following,
        )  # fmt: skip

    def strain(
        self, before: Answers, others: Sequence[Sequence[np.ndarray]] = ()
    ) -> Callable[[Sequence[Sequence[np.ndarray]]], float]:
        """How much of what may be lost is lost, for answers of a model: above 1 is too much.

        It is a careful figure. What a metric says does not count: it is about all inputs.

        Args:
            before: What the original answers to some inputs.
            others: What it answers to more, which no other model will be asked.
        """
        holder, asked = self.holder(before, others), self.asked(before)
        limits = [asked[name] for name in before.names]
        return lambda outputs: holder.strain(outputs, limits, self.confidence)

    def misses(
        self, effect: Sequence[OutputComparison], before: Answers, after: Answers
    ) -> list[str]:
        """What is not kept on the inputs at hand, one line each; empty when all is."""
        lines = []
        if self.max_drop is not None and self.metric is not None:
            drop = self.metric(before.plain.outputs) - self.metric(after.plain.outputs)
            if not drop <= self.max_drop:
                lines.append(f"the metric drops by {drop:.4g}, more than {self.max_drop:g}")
            if self._only_metric:
                return lines
        rows, asked = {row.name: row for row in effect}, self.asked(before)
        kinds = self.kinds(before)
        for name in (name for name in before.names if name in rows):
            top1 = _top1(rows[name], kinds[name], before, after)
            rise = _rise(name, before, after) if "perplexity" in asked[name] else None
            lines += _missed(rows[name], asked[name], top1, rise)
        return lines

    def promises(
        self, before: Answers, after: Answers, looks: int = 1,
        others: Sequence[Sequence[np.ndarray]] = (),
    ) -> list[Promise]:  # fmt: skip
        """What inputs that nobody has seen say, one entry for each figure that is asked for.

        Args:
            before: What the original answers to them.
            after: What the result does.
            looks: How many kinds of results have been held against these inputs, this one included:
                the more, the less does the best of them say (Bonferroni's correction). One kind
                made coarser step by step, until it is refused, is one.
            others: What the original answers to more inputs.
        """
        from onnxshrink.kernels.promise import rows_for

        if before.names != after.names:  # a tail that is not in both
            before, after = before.plain, after.plain
            others = [outputs[: len(before.names)] for outputs in others]
        confidence = 1 - (1 - self.confidence) / looks
        holder, found = self.holder(before, others), []
        for place, (name, limits) in enumerate(self.asked(before).items()):
            for figure, limit in limits.items():
                estimate = holder.estimate(after.outputs, place, figure, confidence)
                lost = round((1 - estimate.figure) * estimate.units)
                wanted = rows_for(limit, lost, confidence) if figure == "agreement" else 0
                found.append(Promise(name, estimate, limit, self.confidence, wanted))
        return found


def _called(metric: Metric) -> str:
    return getattr(metric, "__qualname__", type(metric).__name__)


def _top1(row: OutputComparison, known: Known, before: Answers, after: Answers) -> float | None:
    if known.axis == -1 and known.blank is None:
        return row.top1
    from onnxshrink.kernels.metrics import Agreement

    agreement, place = Agreement(), before.names.index(row.name)
    for x, y in zip(before.outputs, after.outputs, strict=True):
        agreement.add(known.rows(x[place]), known.rows(y[place]))
    if agreement.top1 is None:
        return None
    dilution = known.dilution([feed[place] for feed in before.outputs])
    return max(1 - (1 - agreement.top1) * dilution, 0.0)


def _rise(name: str, before: Answers, after: Answers) -> float:
    """How much higher the perplexity of an output is, relatively."""
    from onnxshrink.kernels.perplexity import perplexity

    place = before.names.index(name)
    x, y = (perplexity((o[place] for o in a.outputs), before.following) for a in (before, after))
    return y / x - 1 if x and y else float("inf")


def _missed(
    row: OutputComparison, limits: Mapping[Figure, float], top1: float | None, rise: float | None
) -> list[str]:
    figures = {
        "agreement": top1, "likeness": row.likeness, "error": row.worst, "divergence": row.kl,
        "perplexity": rise,
        "matched": None,
    }  # fmt: skip
    lines = []
    for figure, limit in limits.items():
        value = figures[figure]
        if value is None:
            continue
        if figure == "error" and not value <= limit:
            of_slice = f" {row.slice}" if row.slice else ""
            lines.append(
                f"relative error of {row.name!r}{of_slice} is {value:.3g}, above {limit:g}"
            )
        elif figure in ("divergence", "perplexity") and not value <= limit:
            lines.append(f"{_WORDS[figure]} of {row.name!r} is {value:.3g}, above {limit:g}")
        elif figure in ("agreement", "likeness") and not value >= limit:
            lines.append(f"{_WORDS[figure]} of {row.name!r} is {value:.4f}, below {limit:g}")
    return lines
