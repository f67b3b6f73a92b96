"""How errors are spread over inputs: a histogram on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxshrink.page.drawing import Axis, picture

WIDTH, HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 16, 30, 44
_LEAST = 1e-7  # an error below this is none
_FEWEST, _MOST = 6, 24


def plot(errors: Sequence[float], title: str) -> str:
    """The plot as SVG.

    Args:
        errors: One for each input, one at least; infinite ones stand at the end.
        title: What it shows.
    """
    finite = [max(error, _LEAST) for error in errors if math.isfinite(error)]
    most = max(finite, default=1.0)
    known = [min(max(error, _LEAST), 2 * most) for error in errors]
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    x = Axis.over(known, _LEFT, right, room=0.02)
    bins = min(max(round(2 * len(known) ** 0.5), _FEWEST), _MOST)
    width = (right - _LEFT) / bins
    counts = [0] * bins
    for error in known:
        counts[min(int((x.place(error) - _LEFT) / width), bins - 1)] += 1
    high = max(counts)
    rows = []
    for count in _counts(high):
        at = bottom - (bottom - _TOP) * count / high
        rows.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        rows.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{count}</text>')
    for number, count in enumerate(counts):
        if not count:
            continue
        tall = (bottom - _TOP) * count / high
        left = _LEFT + number * width
        rows.append(
            f'<rect class="after" x="{left + 1:.1f}" y="{bottom - tall:.1f}" '
            f'width="{width - 2:.1f}" height="{tall:.1f}" rx="2"><title>{count}</title></rect>'
        )
    rows += [
        f'<path class="grid" d="M{x.place(error):.1f} {bottom}v5" style="stroke:currentColor"/>'
        for error in known
    ]
    for tick in x.ticks():
        text = f"{tick:.3g}"
        rows.append(
            f'<text x="{x.place(tick):.1f}" y="{bottom + 19}" text-anchor="middle">{text}</text>'
        )
    rows += [
        f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>',
        f'<text x="{right}" y="{HEIGHT - 8}" text-anchor="end">relative error \u2192</text>',
        '<text x="6" y="16">\u2191 inputs</text>',
    ]
    middle = sorted(errors)[len(errors) // 2]
    said = (
        f"{len(errors)} inputs; half of them are below {middle:.2g}, the worst is {max(errors):.2g}"
    )
    return picture(title, said, WIDTH, HEIGHT, rows)


def _counts(high: int) -> list[int]:
    step = max(1, round(high / 4))
    return [*range(step, high + 1, step)]
