"""Which weights a step may change: the effect of each on the outputs, alone and with the others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxshrink import files
from onnxshrink.errors import ModelError
from onnxshrink.options import build, dump
from onnxshrink.report import Table, printable, size
from onnxshrink.search.partial_step import PartialStep, total
from onnxshrink.trials import Answers, Exchange, Figures

if TYPE_CHECKING:
    from onnxshrink.progress import Progress

_log = logging.getLogger(__name__)

_BROKEN = Figures(float("inf"), 0.0, 0.0)
#: Weights of larger models are not sent to the worker again and again.
_SENT_BYTES = 2**28
#: Weights that are exchanged must do what the step does, up to the order of sums.
_SAME = 1e-3


@dataclass(frozen=True)
class WeightEffect:
    """A weight, or the weights of one operator.

    Attributes:
        name: Of the weight or the operator.
        weights: Names of its weights.
        kind: The operator's type.
        before: Stored bytes.
        after: Bytes after the step.
        alone: The outputs when the step changes nothing else.
        together: The outputs when it changes this and all that harm less.
    """

    name: str
    weights: tuple[str, ...]
    kind: str
    before: int
    after: int
    alone: Figures
    together: Figures


@dataclass(frozen=True)
class Sensitivity:
    """The effect of a step, weight by weight.

    Attributes:
        step: Name of the step.
        feeds: Inputs that it was measured on.
        parts: The most harmful first.
    """

    step: str
    feeds: int
    parts: tuple[WeightEffect, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite error becomes null."""
        data = asdict(self)
        for part in data["parts"]:
            for figures in (part["alone"], part["together"]):
                if not np.isfinite(figures["relative_error"]):
                    figures["relative_error"] = None
        return data

    def table(self) -> Table:
        """The rows for people; ``with all below`` is with what harms less."""
        columns = ("weight", "operator", "before", "after", "error alone", "cosine", "top-1",
                   "error with all below", "cosine", "top-1")  # fmt: skip
        table = Table(f"effect of {self.step} on the outputs, {self.feeds} inputs", columns)
        for part in self.parts:
            table.add(
                part.name, part.kind, size(part.before), size(part.after),
                *_cells(part.alone), *_cells(part.together),
            )  # fmt: skip
        return table

    def to_svg(self) -> str:
        """Bars of the error of each part alone, dots for the error with all below; log scale."""
        import html

        def escape(text: str) -> str:
            return html.escape(printable(text))

        errors = [
            error
            for part in self.parts
            for error in (part.alone.relative_error, part.together.relative_error)
            if 0 < error < np.inf
        ]
        low, high = (np.log10(min(errors)), np.log10(max(errors))) if errors else (-3.0, 0.0)
        low, high = np.floor(low), max(np.ceil(high), np.floor(low) + 1)
        left, width, line = 320, 560, 18
        bottom = 40 + line * len(self.parts)

        def x(error: float) -> float:
            place = np.log10(error) if error > 0 else low
            return left + width * float(np.clip((place - low) / (high - low), 0, 1))

        rows = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" '
            f'height="{bottom + 40}" font-family="system-ui,sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="#fff"/>',
            f'<text x="10" y="20" font-weight="600">{escape(self.table().title)}</text>',
        ]
        for power in range(int(low), int(high) + 1):
            at = x(10.0**power)
            rows.append(f'<path d="M{at:.1f} 32V{bottom}" stroke="#ddd"/>')
            rows.append(
                f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">1e{power}</text>'
            )
        for number, part in enumerate(self.parts):
            y = 40 + line * number
            name = part.name if len(part.name) <= 44 else f"...{part.name[-41:]}"
            alone, together = x(part.alone.relative_error), x(part.together.relative_error)
            rows.append(
                f'<text x="{left - 8}" y="{y + 10}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{left}" y="{y}" width="{alone - left:.1f}" height="12" fill="#6a9fd4">'
                f"<title>{escape(part.name)}: {part.alone.relative_error:.3g} alone, "
                f"{part.together.relative_error:.3g} with all below</title></rect>"
                f'<circle cx="{together:.1f}" cy="{y + 6}" r="4" fill="#c0392b"/>'
            )
        rows.append(
            f'<text x="{left}" y="{bottom + 34}">relative error of the worst output: '
            "bar alone, dot with all below</text></svg>\n"
        )
        return "\n".join(rows)


def _cells(figures: Figures) -> tuple[str, str, str]:
    top1 = "-" if figures.top1 is None else f"{figures.top1:.4f}"
    return f"{figures.relative_error:.3g}", f"{figures.cosine:.5f}", top1


def measure(
    parts: PartialStep, by: Literal["weight", "node"] = "weight", progress: Progress | None = None
) -> Sensitivity:
    """The effect of a step on the outputs: of each part alone, then of one after another.

    Where the step does no more than give weights other values, the model is loaded once and the
    weights are exchanged from run to run; else it is changed and loaded for every figure.

    Args:
        parts: The step and its model.
        by: ``weight``, or all weights of one operator as one.
        progress: Told of every figure.
    """
    groups = _groups(parts, by)
    count = 2 * len(groups)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("measuring", done, count)

    with exchange(parts) as measuring:
        alone: dict[str, Figures] = {}
        for name, weights in groups.items():
            alone[name] = measuring.figures(weights)
            tell()
        order = sorted(groups, key=lambda name: alone[name].relative_error)
        together: dict[str, Figures] = {}
        changed: list[str] = []
        for name in order:
            changed += groups[name]
            together[name] = measuring.figures(changed)
            tell()
    found = []
    for name in reversed(order):
        rows = [parts.changes[weight] for weight in groups[name]]
        before, after = total(rows)
        found.append(
            WeightEffect(
                name, groups[name], rows[0].kind, before, after, alone[name], together[name]
            )
        )
    return Sensitivity(parts.step.name, len(parts.original.outputs), tuple(found))


def _groups(parts: PartialStep, by: str) -> dict[str, tuple[str, ...]]:
    """Weights that are measured as one, by the name of the group; vectors beside them are not."""
    from onnxshrink.graph import weights

    groups: dict[str, tuple[str, ...]] = {}
    for view in weights.find(parts.model):
        if view.name in parts.changes and view.uses:
            names = (view.name,) if by == "weight" else (*view.node_names, view.name)
            name = next(filter(None, names), "")
            groups[name] = (*groups.get(name, ()), view.name)
    return groups


class Anew:
    """Changes and loads the model for every figure."""

    def __init__(self, parts: PartialStep):
        self._parts = parts

    def figures(self, names: Sequence[str]) -> Figures:
        """The effect of changing these weights only."""
        try:
            return Figures.of(self._parts.effect(self._parts.only(names))[0])
        except ModelError as error:
            _log.warning("%s: %s", ", ".join(names), error)
            return _BROKEN


class Exchanged:
    """Runs the model with other weights in place of its own."""

    def __init__(self, parts: PartialStep, loaded: Exchange, arrays: Mapping[str, np.ndarray]):
        self._parts, self._loaded, self._arrays = parts, loaded, arrays

    def answers(self, names: Iterable[str]) -> Answers:
        """The answers with these weights changed only."""
        chosen = {name: self._arrays[name] for name in names}
        return self._loaded.answers(self._parts.feeds, chosen)

    def figures(self, names: Sequence[str]) -> Figures:
        """The effect of changing these weights only."""
        return Figures.of(self._parts.original.figures(self.answers(names)))


@contextlib.contextmanager
def exchange(parts: PartialStep) -> Iterator[Anew | Exchanged]:
    """The fastest way to measure that gives what the step gives."""
    wanted = parts.effect(parts.whole)[1].plain
    arrays = _rebuilt(parts)
    if arrays is None:
        yield Anew(parts)
        return
    loaded = Exchange(parts.model, arrays, parts.worker, whole=True)
    try:
        exchanged = Exchanged(parts, loaded, arrays)
        same = not loaded.refused and _alike(wanted, exchanged.answers(arrays))
        if same:
            yield exchanged
    finally:
        loaded.close()
    if not same:
        _log.info("%s does more than exchange weights", parts.step.name)
        yield Anew(parts)


def _alike(wanted: Answers, found: Answers) -> bool:
    return Figures.of(wanted.figures(found)).relative_error <= _SAME


def _rebuilt(parts: PartialStep) -> dict[str, np.ndarray] | None:
    """What the weights are after the step, as floats; None where they cannot all be had."""
    from onnxshrink.graph import weights
    from onnxshrink.graph.analysis.instrument import instrument

    if parts.model.nbytes() > _SENT_BYTES or not parts.feeds:
        return None
    whole = parts.whole
    if getattr(parts.step, "form", "") == "auto":
        # Rows of a table that are looked up as codes; this form has the same numbers as one value.
        options = {**dump(parts.step), "form": "cast-mul"}
        whole = parts.apply(build(type(parts.step), options, parts.step.name))[0]
    shapes = {view.name: view.shape for view in weights.find(parts.model)}
    with files.scratch() as folder:
        path = folder / "rebuilt.onnx"
        watched = instrument(whole, path, watch=parts.changes).outputs
        if len(watched) < len(parts.changes):
            return None
        answers = dict(zip(parts.worker.open(path).outputs, parts.worker.step(parts.feeds[0])[0],
                           strict=True))  # fmt: skip
        parts.worker.release()
    arrays = {name: answers[output] for name, output in watched.items()}
    arrays = {name: a.T if a.shape != shapes[name] else a for name, a in arrays.items()}
    return arrays if all(a.shape == shapes[name] for name, a in arrays.items()) else None
