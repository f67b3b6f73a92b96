"""What all steps together did to each weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxshrink.report import Step


@dataclass(frozen=True)
class WeightRow:
    """What all steps together did to one weight.

    Attributes:
        name: The weight.
        kind: The operator that uses it.
        elements: How many numbers it holds; 0 where that is not known.
        before: Bytes before the first step that touched it.
        after: Bytes after the last, coded where the result is.
        treatment: What became of it, or why it was left alone.
        changed: Whether any step changed it.
        error: Error figures of the last step that gave some.
    """

    name: str
    kind: str
    elements: int
    before: int
    after: int
    treatment: str
    changed: bool
    error: dict[str, float]

    @property
    def bits(self) -> float | None:
        """Bits that each of its numbers takes."""
        return 8 * self.after / self.elements if self.elements else None


def layers(steps: Iterable[Step], *, coded: bool) -> list[WeightRow]:
    """Every weight that a step named, the largest first.

    Args:
        steps: Of a run.
        coded: Whether the result is stored entropy-coded.
    """
    found: dict[str, WeightRow] = {}
    for step in steps:
        for row in step.changes:
            if not (row.elements or row.error):  # of the graph
                continue
            last = found.get(row.what)
            text = row.note or step.name
            known = last is not None and last.changed
            found[row.what] = WeightRow(
                row.what, row.kind, row.elements or (last.elements if last else 0),
                last.before if last else row.before, (coded and row.coded) or row.after,
                f"{last.treatment}; {text}" if last and known else text, True,
                {**(last.error if last else {}), **row.error},
            )  # fmt: skip
        for skip in step.skips:
            if skip.nbytes and skip.what not in found:
                found[skip.what] = WeightRow(
                    skip.what, skip.kind, skip.elements, skip.nbytes, skip.nbytes, skip.reason,
                    False, {},
                )  # fmt: skip
    return sorted(found.values(), key=lambda layer: -layer.before)
