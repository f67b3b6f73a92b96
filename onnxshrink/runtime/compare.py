"""Two models, the same inputs: how far apart are their answers?"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxshrink import files
from onnxshrink.errors import DataError, ModelError, RecipeError
from onnxshrink.graph.analysis import noise
from onnxshrink.graph.analysis.ranked import ranks
from onnxshrink.graph.file.reading import is_file_packed
from onnxshrink.graph.forms import coded_read, packed
from onnxshrink.kernels import detections
from onnxshrink.kernels.kinds import sounds
from onnxshrink.kernels.metrics import OutputComparison, compare_outputs, differing
from onnxshrink.kernels.perplexity import NO_TOKENS, Perplexity, counted, pairs_of
from onnxshrink.options import check_share
from onnxshrink.runtime import shelf
from onnxshrink.runtime.decoding import steps
from onnxshrink.runtime.session import DEFAULT_OPTIONS, HALVES, SessionOptions
from onnxshrink.runtime.worker import Signature, Worker

PathLike = str | os.PathLike[str]
_NOISE = 2.0  # times the distance of two runs of the reference: what may be added to a limit


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far model ``b`` is from model ``a``, the reference, and what was asked of it.

    Attributes:
        a: Path of the reference.
        b: Path of the other.
        feeds: How many feeds both ran on.
        outputs: The figures of each output, over all feeds.
        options_a: What ``a`` ran with.
        options_b: What ``b`` ran with.
        atol: Largest absolute difference allowed, on top of ``rtol``.
        rtol: Largest difference allowed, relative to each reference value.
        min_agreement: Least top-1 agreement allowed, 0 to 1.
        max_error: Largest relative error allowed, of an output or of the worst slice of it.
        max_kl: Largest mean divergence allowed, in nats, of an output with classes.
        max_perplexity_rise: How much higher, relatively, the perplexity of tokens may be.
        perplexity: Of outputs that foretell tokens, that of ``a`` and that of ``b``, over those
            that are known to follow.
        followed: Outputs that the next run goes on from: the others tell of them, so that no
            threshold is held against them.
        random: Outputs that differ from run to run of the reference, and how far apart their
            distributions are then: these are compared, and the distance of two runs is allowed.
        matched: Of a detector: detections that are found again, and all, of both models. The
            least agreement is asked of these, and nothing of the outputs that hold them.
    """

    a: str
    b: str
    feeds: int
    outputs: tuple[OutputComparison, ...]
    options_a: Mapping[str, object]
    options_b: Mapping[str, object]
    atol: float | None = None
    rtol: float | None = None
    min_agreement: float | None = None
    max_error: float | None = None
    max_kl: float | None = None
    max_perplexity_rise: float | None = None
    perplexity: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    followed: frozenset[str] = frozenset()

    @property
    def judged(self) -> tuple[OutputComparison, ...]:
        """Outputs that thresholds are held against."""
        return tuple(output for output in self.outputs if output.name not in self.followed)

    random: Mapping[str, float] = field(default_factory=dict)
    matched: tuple[int, int] | None = None

    @property
    def relative_error(self) -> float:
        """The largest of any output."""
        return max((output.relative_error for output in self.judged), default=0.0)

    @property
    def top1(self) -> float | None:
        """The lowest of any output that has classes."""
        return min((o.top1 for o in self.judged if o.top1 is not None), default=None)

    @property
    def missed(self) -> list[str]:
        """The thresholds that were missed, one line each; empty when all is well."""
        lines = []
        with_tolerance = self.atol is not None or self.rtol is not None
        of_classes = self.min_agreement is not None or self.max_kl is not None
        asked = with_tolerance or self.max_error is not None or of_classes
        for output in self.judged:
            name = f"output {output.name!r}"
            if asked and not output.elements:
                lines.append(f"{name}: is empty on every input: there is nothing to compare")
            noise = _NOISE * self.random.get(output.name, 0.0)
            if self.max_error is not None and not output.worst <= self.max_error + noise:
                of_slice = f" of {output.slice}" if output.slice else ""
                error = f"relative error{of_slice} {output.worst:.3g}"
                lines.append(f"{name}: {error} is above {self.max_error:g}")
            if with_tolerance and output.outside:
                limit = f"{self.atol or 0:g} + {self.rtol or 0:g} * |reference|"
                count = f"{output.outside:,} of {output.elements:,}"
                lines.append(f"{name}: {count} values differ by more than {limit}")
            least, top1 = self.min_agreement, output.top1
            if least is not None and top1 is not None and not top1 >= least:
                lines.append(f"{name}: top-1 agreement {top1:.4g} is below {least:g}")
            if self.max_kl is not None and output.kl is not None and not output.kl <= self.max_kl:
                lines.append(f"{name}: divergence {output.kl:.3g} is above {self.max_kl:g}")
        rise = self.max_perplexity_rise
        for name, (before, after) in self.perplexity.items():
            if rise is not None and not after / before - 1 <= rise:
                lines.append(
                    f"output {name!r}: perplexity rises from {before:.4g} to {after:.4g}, by "
                    f"{after / before - 1:.3g}, more than {rise:g}"
                )
        if rise is not None and not self.perplexity:
            lines.append(NO_TOKENS)
        if asked and self.outputs and not any(output.elements for output in self.outputs):
            lines.append("every output is empty on these inputs: there is nothing to compare")
        if self.matched is not None and self.min_agreement is not None:
            again, total = self.matched
            if total and not again / total >= self.min_agreement:
                share = f"matched detections {again / total:.4g}"
                lines.append(f"{share} is below {self.min_agreement:g}")
        if of_classes and self.top1 is None and self.matched is None:
            lines.append("no output has classes: there is no top-1 agreement to ask for")
        return lines

    def to_dict(self) -> dict[str, object]:
        """Everything, for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "feeds": self.feeds,
            "outputs": [output.to_dict() for output in self.outputs],
            "options_a": dict(self.options_a),
            "options_b": dict(self.options_b),
            "random": dict(self.random),
            "perplexity": {name: list(pair) for name, pair in self.perplexity.items()},
            "matched": self.matched,
            "missed": self.missed,
        }


def compare(
    a: PathLike,
    b: PathLike,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    options_a: SessionOptions = DEFAULT_OPTIONS,
    options_b: SessionOptions = DEFAULT_OPTIONS,
    atol: float | None = None,
    rtol: float | None = None,
    min_agreement: float | None = None,
    max_error: float | None = None,
    max_kl: float | None = None,
    max_perplexity_rise: float | None = None,
    worker: Worker | None = None,
) -> Comparison:
    """Run two models on the same feeds and compare their outputs, by name.

    Random numbers that they draw are the same in both. Where the reference differs from run to run
    all the same, distributions are compared.

    Args:
        a: The reference.
        b: The other.
        feeds: Inputs that ``a`` takes.
        options_a: How to run ``a``.
        options_b: How to run ``b``.
        atol: See :class:`Comparison`, as for the other thresholds.
        rtol: See there.
        min_agreement: See there.
        max_error: See there.
        max_kl: See there.
        max_perplexity_rise: See there.
        worker: Where to run them; without one, a process is started for it.

    Raises:
        ModelError: A model does not load or run, or their inputs or outputs differ.
        DataError: No feeds, one does not fit, or there is nothing in any output.
        RecipeError: An execution provider is not installed, or a threshold is NaN or below zero.
    """
    check_thresholds({
        "atol": atol, "rtol": rtol, "min_agreement": min_agreement, "max_error": max_error,
        "max_kl": max_kl, "max_perplexity_rise": max_perplexity_rise,
    })  # fmt: skip
    from onnxshrink.graph.analysis.tails import tails

    if not feeds:
        raise DataError("there are no inputs to compare the models on")
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(shelf.Shelf())
        worker = worker or stack.enter_context(Worker())
        stack.callback(worker.release)
        draws = _draws(a) or _draws(b)
        first, second = (stack.enter_context(_seeded(path)) if draws else path for path in (a, b))

        def ask() -> tuple[Signature, list[list[np.ndarray]]]:
            signature = worker.open(first, options_a)
            asked = steps.answered(worker, tuple(signature.outputs), feeds)
            return signature, [kept.keep(outputs) for outputs, _ in asked]

        signature, references = ask()
        random: dict[str, float] = {}
        if draws:
            worker.release()
            random = differing(tuple(signature.outputs), references, ask()[1])
        other = worker.open(second, options_b)
        names = tuple(signature.outputs)
        model = coded_read.load(a)[0] if len(names) > 1 else None
        known = {} if model is None else tails(model)
        boxes = detections.found(references, picks=model is not None and ranks(model))
        again = [0, 0]
        followed = frozenset(name for name, tail in known.items() if tail.followed)
        states = {name for name, tail in known.items() if tail.fed_back}
        followed |= {names[place] for place in boxes.outputs} if boxes else frozenset()
        _check_signatures(os.fspath(a), signature, os.fspath(b), other)
        order = [list(other.outputs).index(name) for name in signature.outputs]

        def results() -> Iterator[list[np.ndarray]]:
            asked = steps.answered(worker, tuple(other.outputs), feeds)
            for reference, (outputs, _) in zip(references, asked, strict=True):
                result = [outputs[place] for place in order]
                if boxes is not None:
                    for place, many in enumerate(detections.matched([reference], [result], boxes)):
                        again[place] += many
                yield result

        before, after = ({name: Perplexity() for name in signature.outputs} for _ in range(2))
        labels = steps.following(feeds)
        outputs = compare_outputs(
            names,
            counted(shelf.read(references), before, labels),
            counted(results(), after, labels),
            atol=atol or 0.0,
            rtol=rtol or 0.0,
            random=random,
            states=states,
            sounds=sounds(names, references, known),
        )
    if not any(output.elements for output in outputs):
        raise DataError(f"{os.fspath(a)}: every output is empty: there is nothing to compare")
    return Comparison(
        a=os.fspath(a), b=os.fspath(b), feeds=len(references), outputs=outputs,
        options_a=options_a.describe(), options_b=options_b.describe(),
        atol=atol, rtol=rtol, min_agreement=min_agreement, max_error=max_error, max_kl=max_kl,
        max_perplexity_rise=max_perplexity_rise, perplexity=pairs_of(before, after),
        followed=followed, random=random, matched=(again[0], again[1]) if boxes else None,
    )  # fmt: skip


def _draws(path: PathLike) -> bool:
    """Whether a model file, plain or packed, draws numbers."""
    if is_file_packed(Path(path)):
        return noise.is_random(packed.load(path))
    return noise.draws(path)


@contextlib.contextmanager
def _seeded(path: PathLike) -> Iterator[Path]:
    """A copy of a model whose draws have seeds by their order; errors name the model."""
    with files.scratch() as folder:
        model, _ = coded_read.load(path)
        noise.seeded(model, by_number=True).save(copy := folder / "model.onnx")
        try:
            yield copy
        except ModelError as error:
            raise type(error)(str(error).replace(str(copy), os.fspath(path))) from error


def check_thresholds(asked: Mapping[str, float | None]) -> None:
    """Refuse thresholds that nothing can be held against.

    Raises:
        RecipeError: One is NaN, infinite or below zero, or a share is beyond 1.
    """
    for what, limit in asked.items():
        if limit is not None and not 0 <= limit < math.inf:
            raise RecipeError(f"{what} takes a finite number of at least 0, not {limit!r}")
    check_share("min_agreement", asked.get("min_agreement"))


def _check_signatures(a: str, first: Signature, b: str, second: Signature) -> None:
    """Outputs may differ in type, which the figures then show; inputs must take the same feeds.

    Where one takes float16 and the other float32, each gets the feeds as it takes them.
    """
    for kind, mine, theirs in (
        ("input", first.inputs, second.inputs),
        ("output", first.outputs, second.outputs),
    ):
        for path, names in ((b, mine.keys() - theirs.keys()), (a, theirs.keys() - mine.keys())):
            if names:
                listed = ", ".join(sorted(names))
                raise ModelError(f"{a} and {b} cannot be compared: {path} has no {kind} {listed}")
    for name, kind in first.inputs.items():
        if kind != second.inputs[name] and not HALVES.keys() >= {kind, second.inputs[name]}:
            raise ModelError(
                f"{a} and {b} cannot be compared: input {name!r} is {kind} in the first and "
                f"{second.inputs[name]} in the second"
            )
