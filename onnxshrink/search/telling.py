"""What a search says of its result in the report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxshrink import budget

if TYPE_CHECKING:
    from onnxshrink.contract import Settings
    from onnxshrink.goal import Aim, Goal
    from onnxshrink.pipeline import Result
    from onnxshrink.search.smallest import Found


def tell(result: Result, found: Found, goal: Goal, settings: Settings, aim: Aim) -> None:
    """Put what a search has found out into the report.

    Args:
        result: The one that is taken; its report is added to.
        found: What the search has found.
        goal: What the answers must keep.
        settings: Which inputs were seen, and which not.
        aim: What the best is best at.
    """
    best, report = found.best, result.report
    budget.tell(report, result, goal, best.promises, settings)
    report.moved, report.unseen = best.moved, budget.named(best.errors, settings)
    report.tried, report.missed = found.rows, [*best.misses, *report.missed]
    if best.strain > 1 and not report.missed:
        report.missed.append(f"{best.strain:.3g} times what may be lost is lost")
    if found.looks > 1:
        report.promises.append(
            f"{found.looks} kinds of results were held against these inputs, which the intervals "
            "allow for"
        )
    if aim == "latency" and not (best.latency or math.inf) < 1:
        report.warnings.append("nothing that keeps the answers is faster on this machine")
    report.signal = found.signal
    if found.stopped:
        report.warnings.append(f"{found.stopped}: this is the best that had been found")
