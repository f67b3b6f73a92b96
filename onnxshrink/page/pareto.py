"""Size against what it costs: every model that was tried, what may be lost, and which was taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxshrink.page.drawing import Axis, picture, plain
from onnxshrink.report import Attempt, share, size

WIDTH, HEIGHT = 520, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 30, 44
_LEAST, _MOST = 0.01, 10.0  # shares of the budget: what is beyond is drawn at the end
_FAR, _CROWD = 2.5, 3  # times the next one's bytes; how many must be left
_FASTER, _SLOWER = 0.95, 1.05  # times the original's latency: between them nothing is told


def speed(latency: float | None) -> str:
    """How fast a model is beside the original, as one of four words."""
    if latency is None:
        return "unmeasured"
    return "faster" if latency < _FASTER else "slower" if latency > _SLOWER else "same"


def front(tried: Sequence[Attempt]) -> list[Attempt]:
    """Those of which no smaller one loses less, from the smallest on."""
    found: list[Attempt] = []
    for one in sorted(tried, key=lambda one: (one.nbytes, one.strain)):
        if math.isfinite(one.strain) and (not found or one.strain < found[-1].strain):
            found.append(one)
    return found


def plot(tried: Sequence[Attempt], title: str) -> str:
    """The plot as SVG: a dot for each, hollow diamonds for what does not keep the budget.

    Args:
        tried: The models, one at least.
        title: What they are of.
    """
    far = _far(tried)
    shown = [one for one in tried if one not in far]
    x = Axis.over([max(one.nbytes, 1) for one in shown], _LEFT + 8, WIDTH - _RIGHT - 8)
    strains = [min(max(one.strain, _LEAST), _MOST) for one in shown]
    y = Axis.over([*strains, 1.0], HEIGHT - _BOTTOM - 6, _TOP + 6)
    limit, right, bottom = y.place(1.0), WIDTH - _RIGHT, HEIGHT - _BOTTOM
    rows = [
        f'<rect class="beyond" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" '
        f'height="{max(limit - _TOP, 0):.1f}"/>',
    ]
    for tick in y.ticks():
        at = y.place(tick)
        rows.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        rows.append(
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{share(tick)}</text>'
        )
    for tick in x.ticks():
        at = x.place(tick)
        rows.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        rows.append(
            f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{_short(tick)}</text>'
        )
    rows += [
        f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>',
        f'<path class="budget" d="M{_LEFT} {limit:.1f}H{right}"/>',
        f'<text class="strong" x="{right - 4}" y="{limit - 6:.1f}" text-anchor="end">budget</text>',
        f'<text x="{right}" y="{HEIGHT - 8}" text-anchor="end">size of the file \u2192</text>',
        '<text x="6" y="16">\u2191 share of the budget that is used</text>',
    ]
    line = front([one for one in shown if one.keeps])
    path = "L".join(
        f"{x.place(one.nbytes):.1f} {y.place(max(one.strain, _LEAST)):.1f}" for one in line
    )
    if len(line) > 1:
        rows.append(f'<path class="front" d="M{path}"/>')
    for one, strain in zip(shown, strains, strict=True):
        rows.append(_dot(one, x.place(one.nbytes), y.place(strain)))
    for one, strain in zip(shown, strains, strict=True):
        if one.taken:
            at, height = x.place(one.nbytes), y.place(strain)
            left = at > (_LEFT + right) / 2
            rows.append(f'<circle class="ring" cx="{at:.1f}" cy="{height:.1f}" r="10.5"/>')
            rows.append(
                f'<text class="strong" x="{at + (-15 if left else 15):.1f}" y="{height + 18:.1f}" '
                f'text-anchor="{"end" if left else "start"}">taken: {size(one.nbytes)}</text>'
            )
    for row, one in enumerate(far):
        rows.append(
            f'<text x="{right - 4}" y="{bottom - 8 - 16 * row}" text-anchor="end">'
            f"{plain(one.recipe)}: {size(one.nbytes)} \u25b8</text>"
        )
    return picture(title, _said(tried), WIDTH, HEIGHT, rows)


def _far(tried: Sequence[Attempt]) -> list[Attempt]:
    """Those so much larger than all others that these would be crowded: they are named instead."""
    largest = sorted(tried, key=lambda one: -one.nbytes)
    far = []
    while len(largest) > _CROWD and largest[0].nbytes > _FAR * largest[1].nbytes:
        if largest[0].taken:
            break
        far.append(largest.pop(0))
    return far


def legend(tried: Sequence[Attempt]) -> list[tuple[str, str]]:
    """The marks of a plot and what they mean: SVG, words."""
    words = {
        "faster": "faster than the original", "same": "as fast", "slower": "slower",
        "unmeasured": "latency not measured",
    }  # fmt: skip
    seen = [name for name in words if any(speed(one.latency) == name for one in tried)]
    found = [(_mark(f'<circle class="{name}" cx="7" cy="7" r="5"/>'), words[name]) for name in seen]
    if any(not one.keeps for one in tried):
        mark = '<path class="refused unmeasured" d="M7 1.5L12.5 7L7 12.5L1.5 7Z"/>'
        found.append((_mark(mark), "does not keep the budget"))
    if any(one.taken for one in tried):
        found.append((_mark('<circle class="ring" cx="7" cy="7" r="5.5"/>'), "taken"))
    return found


def _mark(inside: str) -> str:
    return f'<svg class="plot" viewBox="0 0 14 14" aria-hidden="true">{inside}</svg>'


def _dot(one: Attempt, x: float, y: float) -> str:
    label = f"{one.recipe}: {size(one.nbytes)}, {share(one.strain)} of the budget"
    if one.latency is not None:
        label += f", {one.latency:.2f} times the latency"
    title = f"<title>{plain(label)}; {plain(one.verdict)}</title>"
    look = speed(one.latency)
    if one.keeps:
        return f'<circle class="dot {look}" cx="{x:.1f}" cy="{y:.1f}" r="6.5">{title}</circle>'
    shape = f"M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5Z"
    return f'<path class="refused {look}" d="{shape}">{title}</path>'


def _said(tried: Sequence[Attempt]) -> str:
    kept = sum(one.keeps for one in tried)
    taken = next((one for one in tried if one.taken), None)
    text = (
        f"{len(tried)} models by size and by the share of the budget that they use; {kept} keep it"
    )
    if taken is not None:
        text += f"; taken is {taken.recipe} with {size(taken.nbytes)}, {share(taken.strain)}"
    return text


def _short(nbytes: float) -> str:
    return size(nbytes).replace(".0 ", " ")
