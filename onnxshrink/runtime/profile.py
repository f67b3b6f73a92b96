"""Where the time of a run goes: ONNX Runtime's own profile, added up by operator."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_KERNEL = "_kernel_time"


@dataclass(frozen=True, order=True)
class OperatorTime:
    """What the nodes of one operator take together.

    Attributes:
        operator: Its name, in the graph as ONNX Runtime optimized it.
        nodes: How many there are.
        seconds: Of one run.
    """

    operator: str
    nodes: int
    seconds: float


def by_operator(path: Path) -> list[OperatorTime]:
    """Add up a profile; the first run, which makes things ready, is left out.

    Args:
        path: The file that ONNX Runtime wrote: events in the trace format of Chromium, with times
            in microseconds.

    Returns:
        The operators, the slowest first.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    begin = starts[1] if len(starts) > 1 else 0
    runs = max(1, len(starts) - 1)
    names: dict[str, set[str]] = defaultdict(set)
    total: dict[str, float] = defaultdict(float)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith(_KERNEL) or event["ts"] < begin:
            continue
        operator = event["args"]["op_name"]
        names[operator].add(name)
        total[operator] += event["dur"] / 1e6
    found = (OperatorTime(name, len(names[name]), total[name] / runs) for name in total)
    return sorted(found, key=lambda each: (-each.seconds, each.operator))
