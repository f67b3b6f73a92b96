"""The parts of the page of a report, from the headline to where it all came from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxshrink.page import pareto, spread
from onnxshrink.page.drawing import plain
from onnxshrink.page.tables import Cell, bar, cell, name, number, table, two_bars
from onnxshrink.report import share, size, times

if TYPE_CHECKING:
    from onnxshrink.page.layers import WeightRow
    from onnxshrink.report import Report, Table

_SHOWN = 20  # weights, before the rest is folded away
_TRIED = 12
_WORST = 5
_MARKS = {True: "\u2713", False: "\u2715"}
_NONE = "\u2013"
_DECADES = 4  # of sensitivities that bars tell apart


def title(report: Report) -> str:
    """What the page is called."""
    return f"{os.path.basename(report.result) or 'model'}: {_ratio(report)}"


def head(report: Report) -> str:
    """The headline, the verdict and the figures that people ask for first."""
    called = os.path.basename(report.source) or "the model"
    cards = [
        (size(report.bytes_after), f"on disk, was {size(report.bytes_before)}"),
        *_download(report),
        *_speed(report),
        *_error(report),
    ]
    if report.runtime:
        needs = "with the reader of packs" if report.packed else "opens it as any ONNX model"
        cards.append((f"{report.runtime}+", f"ONNX Runtime, {needs}"))
    items = "".join(
        f"<li><b>{plain(value)}</b><span>{plain(what)}</span></li>" for value, what in cards
    )
    big, _, unit = _ratio(report).partition(" ")
    good, verdict = _verdict(report)
    look = "verdict" if good else "verdict missed"
    return (
        f'<header><p class="eyebrow">onnxshrink report</p><h1>{plain(called)}</h1>'
        f'<p class="hero"><strong>{plain(big)}</strong> <span>{plain(unit)}</span></p>'
        f'<p class="{look}">{_MARKS[good]} {plain(verdict)}</p></header>'
        f'<ul class="cards">{items}</ul>'
    )


def notes(report: Report) -> str:
    """What the unseen inputs promise, what was missed, what is to be known."""
    parts = []
    for heading, lines in (
        ("What was missed", report.missed),
        ("What inputs that no step has seen say", report.promises),
        ("To be known", [*report.warnings, report.next_step()]),
    ):
        if lines:
            items = "".join(f"<li>{plain(line)}</li>" for line in lines)
            parts.append(f'<h2>{heading}</h2><ul class="notes">{items}</ul>')
    return "".join(parts)


def comparison(report: Report) -> str:
    """The model before and after, and every output of it."""
    rows = [[cell("bytes"), *_pair(size(report.bytes_before), size(report.bytes_after)),
             number(times(report.bytes_before, report.bytes_after))]]  # fmt: skip
    if report.bench is not None:
        b = report.bench
        rows.append([cell("latency"), *_pair(f"{b['before_ms']:.3g} ms", f"{b['after_ms']:.3g} ms"),
                     number(f"{b['ratio']:.2f}x ({b['low']:.2f} to {b['high']:.2f})")])  # fmt: skip
    for what, nbytes in (("after gzip", report.bytes_gzip), ("after brotli", report.bytes_brotli)):
        if nbytes is not None:
            rows.append([cell(what), *_pair("", size(nbytes)), number("")])
    found = table("size and speed", ("", "before", "after", "ratio"), rows, figures=3)
    effect = [
        [cell(output), *(number(_figure(row.get(key))) for key in _EFFECT),
         cell(report.measures.get(output, ""))]
        for output, row in report.outputs.items()
    ]  # fmt: skip
    heads = ("output", "relative error", "cosine", "top-1", "worst input", "held to")
    outputs = table("outputs, on inputs that steps may see", heads, effect, figures=4)
    return f"<h2>Before and after</h2>{found}{outputs if effect else ''}"


_EFFECT = ("relative_error", "cosine", "top1", "worst_input")


def search(report: Report) -> str:
    """What was tried."""
    if not report.tried:
        return ""
    heads = ("recipe", "size", "budget", "error", "latency")
    rows, taken = [], []
    for one in report.tried:
        latency = "" if one.latency is None else f"{one.latency:.2f}x"
        rows.append([cell(one.recipe, one.verdict), number(size(one.nbytes)),
                     number(share(one.strain)), number(_figure(one.error)),
                     number(latency)])  # fmt: skip
        taken.append(one.taken)
    marks = "".join(
        f"<span>{mark} {plain(text)}</span>" for mark, text in pareto.legend(report.tried)
    )
    drawn = pareto.plot(report.tried, "What the search tried")
    beside = table(f"{len(rows)} recipes", heads, rows, figures=4, taken=taken, shown=_TRIED)
    return (
        "<h2>What the search tried</h2>"
        "<p>Every dot is a whole model: further left is smaller, further down is closer to the "
        "original. Above the dashed line more is lost than may be.</p>"
        f'<div class="pair"><figure>{drawn}<div class="legend">{marks}</div></figure>{beside}</div>'
    )


def front(report: Report) -> str:
    """The models to choose from, where they were asked for."""
    if report.front is None:
        return ""
    return f"<h2>Models to choose from</h2>{_plain_table(report.front, figures=5, after=2)}"


def weights(report: Report) -> str:
    """What became of each weight."""
    layers = report.layers
    if not layers:
        return ""
    most = max(layer.before for layer in layers) or 1
    bits = max([layer.bits or 0.0 for layer in layers] + [1.0])
    found = [layer.error["sensitivity"] for layer in layers if layer.error.get("sensitivity")]
    top = math.log10(max(found)) if found else 0.0
    rows = []
    for layer in layers:
        told = layer.error.get("sensitivity")
        level = 0.0 if not told else (math.log10(told) - top) / _DECADES + 1
        row = [
            name(layer.name, layer.kind),
            _bits(layer, bits),
            two_bars(" \u2192 ".join([size(layer.before), size(layer.after)]), layer.before / most,
                     layer.after / most),
            bar(_percent(layer.after, report.bytes_after), layer.after / (report.bytes_after or 1)),
        ]  # fmt: skip
        if found:
            row.append(bar(f"{told:.2g}" if told else _NONE, level))
        rows.append([*row, cell(layer.treatment)])
    rest = report.bytes_after - sum(layer.after for layer in layers)
    if rest > 0:
        share_of = bar(_percent(rest, report.bytes_after), rest / report.bytes_after)
        blank = [cell("")] if found else []
        told_ = cell("graph, tables of the coding, small constants")
        rows.append([cell("everything else"), cell(""), cell(size(rest)), share_of, *blank, told_])
    heads = ["weight", "bits each", "bytes", "share of result", "what became of it"]
    how = ""
    if found:
        heads.insert(4, "sensitivity")
        how = (
            " Sensitivity is the squared error that the outputs take for a squared relative error "
            "of the weight, as the search measured it; its bars are logarithmic."
        )
    return (
        "<h2>Weight by weight</h2>"
        f'<p class="soft">The largest first; pale bars are bytes before.{how}</p>'
        + table(f"{len(layers)} weights", heads, rows, shown=_SHOWN)
    )


def inputs(report: Report) -> str:
    """How errors are spread over unseen inputs, and which are the worst."""
    if not report.unseen:
        return ""
    errors = [one.error for one in report.unseen]
    drawn = spread.plot(errors, "Errors on unseen inputs")
    middle = sorted(errors)[len(errors) // 2]
    rows = [[name(one.name), number(_figure(one.error))] for one in report.unseen]
    beside = table("the worst first", ("input", "relative error"), rows, figures=1, shown=_WORST)
    return (
        "<h2>Errors on unseen inputs</h2>"
        f"<p>{len(errors)} inputs that no step has seen; half of them are off by less than "
        f"{middle:.2g}, the worst by {max(errors):.2g}.</p>"
        f'<div class="pair"><figure>{drawn}</figure>{beside}</div>'
    )


def left_alone(report: Report) -> str:
    """What was left alone, and why."""
    found = [each for each in report.tables() if each.title == "left alone"]
    moved = [[cell(name), cell(rung)] for name, rung in report.moved.items()]
    kept = table("kept at a higher precision", ("weight", "as"), moved, shown=_SHOWN)
    tables = "".join(_plain_table(each, figures=2, after=2) for each in found)
    tables += kept if moved else ""
    return f"<h2>What was left alone, and why</h2>{tables}" if tables else ""


def steps(report: Report) -> str:
    """The steps, with their options."""
    rows = []
    for step in report.steps:
        options = ", ".join(f"{name}: {value}" for name, value in step.options.items())
        error = "" if step.max_error is None else _figure(step.max_error)
        rows.append([cell(step.name, options), cell(f"{step.status}{': ' if step.reason else ''}"
                     f"{step.reason}"), *_pair(size(step.bytes_before), size(step.bytes_after)),
                     number(error), number(f"{step.seconds:.1f} s")])  # fmt: skip
    heads = ("step", "result", "before", "after", "error", "time")
    if not rows:
        return ""
    names = ""
    if report.renamed:
        names = (
            f'<p class="soft">{len(report.renamed)} internal names are shortened in the result; '
            "the .json report has the old ones.</p>"
        )
    return f"<h2>Steps</h2>{table('in this order', heads, rows, figures=4, numbers_from=2)}{names}"


def origin(report: Report) -> str:
    """What was asked for, and what it takes to make the result again."""
    parts = []
    known = dict(report.provenance)
    command = known.pop("command", None)
    for named in (each for each in report.details() if each.title in _ORIGINS):
        rows = [row for row in named.rows if row[0] != "command"]
        made = [
            [cell(what), Cell(f'<span class="mono">{plain(value)}</span>')] for what, value in rows
        ]
        if made:
            parts.append(table(named.title, named.columns, made))
    if not parts:
        return ""
    typed = f"<pre><code>{plain(command)}</code></pre>" if command else ""
    return f"<h2>Where it came from</h2>{typed}{''.join(parts)}"


_ORIGINS = ("what was asked for", "where it came from")


def _plain_table(found: Table, *, figures: int = 0, after: int = 1) -> str:
    rows = [
        [
            number(text) if after <= at < after + figures else cell(text)
            for at, text in enumerate(row)
        ]
        for row in found.rows
    ]
    return table(found.title, found.columns, rows, figures=figures, numbers_from=after)


def _bits(layer: WeightRow, most: float) -> Cell:
    if layer.bits is None:
        return cell("")
    return bar(f"{layer.bits:.2f}", layer.bits / most)


def _verdict(report: Report) -> tuple[bool, str]:
    if report.missed:
        return False, "The goal was missed"
    if report.promises:
        return True, "Kept on inputs that no step had seen"
    if report.checks.get("inputs") == "generated" or not report.outputs:
        return False, "Not checked on real inputs"
    return True, "Checked on the inputs that were given; nothing is promised for others"


def _ratio(report: Report) -> str:
    if report.bytes_after > report.bytes_before:
        return f"{times(report.bytes_after, report.bytes_before)} bigger"
    return f"{times(report.bytes_before, report.bytes_after)} smaller"


def _download(report: Report) -> list[tuple[str, str]]:
    for nbytes, how in ((report.bytes_brotli, "brotli"), (report.bytes_gzip, "gzip")):
        if nbytes is not None:
            return [(size(nbytes), f"to download, after {how}")]
    return []


def _speed(report: Report) -> list[tuple[str, str]]:
    if report.bench is None:
        return []
    found = report.bench
    return [(f"{found['ratio']:.2f}x", f"latency ({found['low']:.2f} to {found['high']:.2f})")]


def _error(report: Report) -> list[tuple[str, str]]:
    if report.unseen:
        errors: Sequence[float] = [one.error for one in report.unseen]
        middle = sorted(errors)[len(errors) // 2]
        return [(f"{middle:.2g}", f"median error of {len(errors)} unseen inputs")]
    errors = [row["relative_error"] for row in report.outputs.values() if row["relative_error"]]
    return [(f"{max(errors):.2g}", "largest relative error of an output")] if errors else []


def _pair(before: str, after: str) -> tuple[Cell, Cell]:
    return number(before), number(after)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _figure(value: float | None) -> str:
    return _NONE if value is None or not math.isfinite(value) else f"{value:.3g}"
