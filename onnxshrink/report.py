"""What a run did: one row for every change, one row with a reason for everything left alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from onnxshrink.page.layers import WeightRow

_SCHEMA = 2  # of the JSON form; it goes up when a name goes or changes its meaning
_MOST_KEPT = 10
_WEIGHT_FIGURES = ("sensitivity", "sqnr_db")
_FIGURES = ("relative_error", "cosine", "top1", "worst_input")
Status = Literal["done", "nothing to do", "rolled back"]


@dataclass(frozen=True)
class Change:
    """Something that a pass made smaller or different.

    Attributes:
        what: Name of the weight or node.
        kind: Its operator or role, for instance ``Conv``.
        before: Stored bytes before.
        after: Stored bytes after.
        note: What it became, for instance ``int8 per channel, folded at load``.
        error: Error figures by name, for instance ``{"sqnr_db": 41.2}``.
        elements: Of a weight: how many numbers it holds.
        coded: Bytes after, where it is entropy-coded; 0 where that is not known.
    """

    what: str
    kind: str
    before: int
    after: int
    note: str = ""
    error: dict[str, float] = field(default_factory=dict)
    elements: int = 0
    coded: int = 0


@dataclass(frozen=True)
class Skip:
    """Something that a pass left alone, and why."""

    what: str
    reason: str
    kind: str = ""
    nbytes: int = 0
    elements: int = 0


@dataclass(frozen=True)
class Attempt:
    """A recipe that a search tried.

    Attributes:
        recipe: Its steps, with what was chosen.
        nbytes: Bytes of the file, stored as asked for.
        strain: Share of what may be lost that is lost; infinite for what it is out of the question.
        verdict: What became of it.
        error: Largest relative error of an output; on unseen inputs where they were asked.
        latency: Time over the original's; None where it was not measured.
        keeps: Whether it keeps the goal.
        taken: Whether it is the result.
    """

    recipe: str
    nbytes: int
    strain: float
    verdict: str
    error: float = 0.0
    latency: float | None = None
    keeps: bool = True
    taken: bool = False


@dataclass(frozen=True)
class InputError:
    """How far the outputs are off on one input that no step has seen.

    Attributes:
        name: Where it was found.
        error: The largest relative L2 error of an output.
    """

    name: str
    error: float


@dataclass
class Step:
    """One pass of a run.

    Attributes:
        bytes_before: Size in bytes of the model file before the pass, external data included.
        outputs: Measured effect on the outputs: name -> figures against the step's input.
        reason: Why a rolled back step was rolled back.
        chosen: Options that the step chose for itself, by name.
        warnings: What a reader of the report must know about the step.
        latency: Of the model over that before the step, where the step is for speed: ``ratio``, and
            the interval ``low`` to ``high``; None where it was not measured.
        may_grow: Whether the pass says that the file may become bigger this time: kernels for
            weights that were integers already take more constants.
        retyped: Whether the pass says that inputs and outputs of float32 are float16 from now on.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    status: Status = "done"
    reason: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0
    changes: list[Change] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    chosen: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_error: float | None = None
    latency: dict[str, float] | None = None
    may_grow: bool = False
    retyped: bool = False

    @property
    def coding_saves(self) -> int:
        """Bytes that its codes would take less entropy-coded, as far as that is known."""
        return sum(change.after - change.coded for change in self.changes if change.coded)


@dataclass
class Report:
    """A whole run: its steps, its checks, its warnings.

    Attributes:
        checks: How the contract was checked (runtime, provider, inputs), for reproducing it.
        outputs: Effect of the whole run on every output: name -> figures against the original.
        renamed: Short names of values and nodes in the result, by the names they had.
        bytes_gzip: Size of the result after gzip of level 6, above 8 MiB of 1; None if very large.
        bytes_brotli: The same after brotli of quality 9, above 8 MiB of 6.
        runtime: The first ONNX Runtime that loads the result; empty where that is not known.
        written: Whether the result stands there: one that misses takes no older one's place.
        packed: Whether the result needs a reader of packs.
        bench: Latency of the result against the input, where it was measured.
        moved: Weights that a search kept at a higher precision than the others, and at which.
        measures: What each output was taken for, and why.
        tried: What a search tried, the largest first.
        unseen: The errors on inputs that no step has seen, the largest first.
        asked: What was asked for, by option.
        storage: How the result is stored.
        provenance: What it takes to make the result again: versions, seed, hashes, CPU, command.
        promises: What inputs that no step has seen say of the result.
        missed: What a search could not keep or reach, one line each.
        origin: What a certified result was made from.
        front: Models from near-lossless to smallest, where they were asked for.
        signal: The exit code that tells of Ctrl-C or SIGTERM, where one of them ended the search
            and this is the best that it had found; else 0.
        unproven: Whether the given inputs could not have shown a difference.
        matched: Detections that are found again, and all, where the model has some.
    """

    source: str = ""
    result: str = ""
    steps: list[Step] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    bench: dict[str, Any] | None = None
    moved: dict[str, str] = field(default_factory=dict)
    measures: dict[str, str] = field(default_factory=dict)
    tried: list[Attempt] = field(default_factory=list)
    unseen: list[InputError] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)
    storage: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    promises: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    front: Table | None = None
    signal: int = 0
    unproven: bool = False
    matched: tuple[int, int] | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    bytes_gzip: int | None = None
    bytes_brotli: int | None = None
    runtime: str = ""
    packed: bool = False
    written: bool = True
    renamed: dict[str, str] = field(default_factory=dict)

    def shortened(self, name: str) -> None:
        """Credit a step, the only one that did anything, with names that the file has shorter."""
        step = next(step for step in self.steps if step.name == name)
        step.status, step.bytes_after = "done", self.bytes_after
        note = f"{len(self.renamed)} names shortened"
        step.changes.append(Change("names", "graph", step.bytes_before, self.bytes_after, note))

    @property
    def changed(self) -> bool:
        """Whether any step changed the model."""
        return any(step.status == "done" for step in self.steps)

    @property
    def ratio(self) -> float:
        """How many times smaller the result is."""
        return self.bytes_before / self.bytes_after if self.bytes_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        from dataclasses import asdict, replace

        front = None if self.front is None else self.front.to_dicts()
        found = {
            "schema": _SCHEMA,
            **asdict(replace(self, front=None)),
            "front": front,
            "layers": [{**asdict(layer), "bits": layer.bits} for layer in self.layers],
            "changed": self.changed,
            "ratio": round(self.ratio, 4),
        }
        plain: dict[str, Any] = _finite(found)
        return plain

    def to_json(self) -> str:
        """The report for machines."""
        return json.dumps(self.to_dict(), indent=1, default=str)

    def tables(self) -> list[Table]:
        """The report for people: the steps, then what was left alone, then the effect."""
        steps = Table(
            "steps",
            ("step", "result", "before", "after", "ratio", "changed", "left alone", "error"),
        )
        for step in self.steps:
            steps.add(
                step.name, step.status, size(step.bytes_before), size(step.bytes_after),
                times(step.bytes_before, step.bytes_after), len(step.changes), len(step.skips),
                "" if step.max_error is None else f"{step.max_error:.2g}",
            )  # fmt: skip
        tables = [steps]
        reasons: Counter[tuple[str, str]] = Counter()
        weight: Counter[tuple[str, str]] = Counter()
        for step in self.steps:
            if step.reason:
                reasons[step.name, f"{step.status}: {step.reason}"] += 1
            for skip in step.skips:
                reasons[step.name, skip.reason] += 1
                weight[step.name, skip.reason] += skip.nbytes
        title = "effect on the outputs"
        if left := self.checks.get("left"):
            title += f" for {self.checks['feeds']} inputs, spread over all; {left} were left"
        effect = Table(
            title, ("output", "relative error", "cosine", "top-1", "worst input", "worst slice")
        )
        for name, row in self.outputs.items():
            figures = (_figure(row[key]) for key in _FIGURES)
            worst = f"{_figure(row['worst'])} at {row['slice']}" if row["slice"] else ""
            effect.add(name, *figures, worst)
        tables.append(effect)
        if self.matched is not None and self.matched[1]:
            boxes = Table("detections", ("of both models", "found again", "matched detections"))
            again, total = self.matched
            boxes.add(f"{total:,}", f"{again:,}", f"{100 * again / total:.1f} %")
            tables.append(boxes)
        heard = {n: row for n, row in self.outputs.items() if row.get("spectrum_db") is not None}
        if heard:
            sounds = Table("sounds", ("output", "log-spectral distance", "length drift"))
            for name, row in heard.items():
                sounds.add(name, f"{row['spectrum_db']:.2f} dB", f"{100 * row['drift']:.2f} %")
            tables.append(sounds)
        if self.renamed:
            names = Table("names", ("internal names", "in the result"))
            how = "shortened; a .json report has the old ones, --keep-names keeps them"
            names.add(len(self.renamed), how)
            tables.append(names)
        if self.measures:
            kinds = Table("what the outputs are held to", ("output", "taken for", "because"))
            for name, text in self.measures.items():
                kinds.add(name, *text.split(": ", 1))
            tables.append(kinds)
        if self.tried:
            tried = Table("what was tried", ("recipe", "stored", "budget used", "verdict"))
            for one in self.tried:
                tried.add(one.recipe, size(one.nbytes), share(one.strain), one.verdict)
            tables.append(tried)
        if self.front is not None:
            tables.append(self.front)
        if reasons:
            left = Table("left alone", ("step", "reason", "count", "bytes"))
            for (name, reason), count in reasons.most_common():
                left.add(name, reason, count, size(weight[name, reason]))
            tables.append(left)
        return tables

    def headline(self) -> str:
        """The run in one line."""
        if not self.changed and self.bytes_after >= self.bytes_before:
            return f"{self.result}: nothing was changed ({size(self.bytes_after)})"
        line = (
            f"{self.result}: {size(self.bytes_before)} -> {size(self.bytes_after)}, "
            f"{_comparison(self.bytes_before, self.bytes_after)}"
        )
        if self.bytes_gzip is not None:
            line += f", {size(self.bytes_gzip)} after gzip"
        if self.bytes_brotli is not None:
            line += f", {size(self.bytes_brotli)} after brotli"
        if self.promises:
            line += f", {self.promises[0]}"
        elif self.outputs:
            worst = max(self._errors(), default=0.0)
            line += f", largest relative error of an output {worst:.2g}"
        if self.bench is not None:
            line += f", latency {self.bench['ratio']:.2f}x"
        return line

    def next_step(self) -> str:
        """What to do with the result, in one line."""
        if not self.written:
            return f"{self.result} is as it was; --keep-best writes the best result over it"
        since = f"ONNX Runtime {self.runtime} or newer" if self.runtime else "ONNX Runtime"
        if self.packed:
            return (
                f"{self.result} needs a reader of packs: onnxshrink.session() in Python, "
                "'onnxshrink bundle' for other places"
            )
        return f"{self.result} opens as any ONNX model, in {since}"

    def kept(self) -> list[str]:
        """The weights that a search kept at a higher precision, ten of them in full."""
        lines = [f"kept at {rung}: {name}" for name, rung in self.moved.items()]
        if (more := len(lines) - _MOST_KEPT) > 0:
            lines = [
                *lines[:_MOST_KEPT],
                f"and {more} more are kept: --report FILE has all of them",
            ]
        return lines

    def _errors(self) -> list[float]:
        rows = self.outputs.values()
        return [float("inf") if row["worst"] is None else row["worst"] for row in rows]

    @property
    def layers(self) -> list[WeightRow]:
        """Every weight that a step named, the largest first."""
        from onnxshrink.page.layers import layers

        return layers(self.steps, coded=self.storage in ("coded", "packed"))

    def details(self) -> list[Table]:
        """What is too long for a terminal: each weight, each unseen input, where all came from."""
        weights = Table(
            "weights",
            ("weight", "operator", "before", "after", "bits", "treatment", *_WEIGHT_FIGURES),
        )
        for layer in self.layers:
            figures = (layer.error.get(name) for name in _WEIGHT_FIGURES)
            weights.add(
                layer.name, layer.kind, size(layer.before), size(layer.after),
                "" if layer.bits is None else f"{layer.bits:.2f}", layer.treatment,
                *("" if value is None else f"{value:.3g}" for value in figures),
            )  # fmt: skip
        inputs = Table("errors on unseen inputs", ("input", "relative error"))
        for one in self.unseen:
            inputs.add(one.name, f"{one.error:.3g}")
        asked = Table("what was asked for", ("option", "value"))
        for name, value in self.asked.items():
            asked.add(name, value)
        origin = Table("where it came from", ("what", "value"))
        for name, value in self.provenance.items():
            if isinstance(value, dict):
                for key, each in value.items():
                    origin.add(f"{name} {key}", each)
            else:
                origin.add(name, value)
        return [table for table in (weights, inputs, asked, origin) if table.rows]

    def to_markdown(self) -> str:
        """The report in Markdown: the headline, what is to be known, the tables."""
        notes = [*self.missed, *self.promises, *self.warnings]
        lines = "\n".join(f"- {printable(note)}" for note in notes)
        tables = [
            f"## {printable(table.title)}\n\n{table.to_markdown()}"
            for table in [*self.tables(), *self.details()]
            if table.rows
        ]
        return "\n\n".join([f"# {printable(self.headline())}", *filter(None, [lines]), *tables])

    def to_html(self) -> str:
        """A page to show: it needs no other file."""
        from onnxshrink import page

        return page.document(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from onnxshrink import page

        return page.fragment(self)


class Table:
    """Rows under headings; the same table goes to a terminal, Markdown or a test."""

    def __init__(self, title: str, columns: Sequence[str]):
        self.title = title
        self.columns = tuple(columns)
        self.rows: list[tuple[str, ...]] = []

    def add(self, *cells: object) -> None:
        """Append one row; numbers are aligned right when shown."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(str(cell) for cell in cells))

    def to_dicts(self) -> list[dict[str, str]]:
        """Every row by heading, for JSON."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def to_html(self) -> str:
        """A table of a page."""
        from html import escape

        def cells(kind: str, row: Iterable[str]) -> str:
            return "<tr>" + "".join(f"<{kind}>{escape(printable(cell))}" for cell in row)

        body = "".join(cells("td", row) for row in self.rows)
        title = escape(printable(self.title))
        return f"<table><caption>{title}{cells('th', self.columns)}{body}</table>"

    def to_markdown(self) -> str:
        """A Markdown table."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(printable(c).replace("|", "\\|") for c in cells) + " |"

        rule = "|" + "|".join(" --- " for _ in self.columns) + "|"
        return "\n".join([line(self.columns), rule, *map(line, self.rows)])


def printable(text: str) -> str:
    """A text on one line that changes nothing but what is read: names may hold any character.

    Control characters, line ends, marks of direction and halves of surrogate pairs are escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _finite(value: Any) -> Any:
    """The same for JSON, which has no infinity: None in its place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def share(value: float) -> str:
    """A share for people: ``74 %``."""
    return f"{100 * value:.0f} %" if math.isfinite(value) else "out of the question"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1000: ``17.4 MB``."""
    for unit in ("B", "kB", "MB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def _comparison(before: int, after: int) -> str:
    """How two sizes compare, for people: ``3.94x smaller``."""
    if (ratio := times(before, after)) == "1.00x":
        return "the same size"
    return f"{ratio} smaller" if after < before else f"{times(after, before)} bigger"


def times(before: float, after: float) -> str:
    """A ratio for people: ``3.94x``."""
    return f"{before / after:.2f}x" if after else "-"
