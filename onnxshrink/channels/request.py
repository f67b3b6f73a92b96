"""What is asked for: how much is to be left of what, and which channels may go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Importance = Literal[
    "auto", "l1", "l2", "bn-gamma", "activation", "variance", "hessian", "greedy", "random"
]
Scope = Literal["auto", "local", "global", "measured"]
Units = Literal["channels", "heads", "head-dimensions", "width"]


@dataclass(frozen=True)
class ChannelGoal:
    """How much is to be left.

    Attributes:
        of: Of the units of each group, of the multiply-accumulates, of the weights' bytes, or of
            the time in ONNX Runtime.
        left: The share that stays.
    """

    of: Literal["units", "macs", "bytes", "latency"]
    left: float

    def after(self, part: float) -> float:
        """What is left when this part of the way is gone, in steps that each leave one share."""
        return float(self.left**part)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to remove from a model.

    Attributes:
        goal: How much.
        ratios: Shares of some groups that go, by pattern of a name, instead.
        importance: What ranks the units of a group; see :func:`ranking.score`.
        scope: Whether groups lose the same share (``local``), the units that matter least anywhere
            (``global``), or what the outputs need least (``measured``); ``auto`` measures where
            there are real inputs.
        units: Kinds of units that may go; none: all, but of two factors of one axis the finer.
        keep: Patterns of what to leave alone.
        round_to: What lengths of axes are multiples of.
        minimum: Units that every group keeps.
        compensate: Whether weights that read what goes make up for it.
        damping: How closely they stay to what they were; None: tried out on held-out inputs.
    """

    goal: ChannelGoal
    ratios: Mapping[str, float] = field(default_factory=dict)
    importance: Importance = "auto"
    scope: Scope = "auto"
    units: tuple[Units, ...] = ()
    keep: tuple[str, ...] = ()
    round_to: int = 8
    minimum: int = 1
    compensate: bool = True
    damping: float | None = None
