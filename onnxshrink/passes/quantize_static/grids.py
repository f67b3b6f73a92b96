"""The grids of activations: what calibration saw of each value, and the range that follows."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import DataError
from onnxshrink.kernels.observers import Extremes, Histogram, Need
from onnxshrink.kernels.ranges import Grid
from onnxshrink.passes.quantize_static.scheme import StaticScheme
from onnxshrink.pipeline import Context

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.integer_kernels import IntegerCandidate
    from onnxshrink.graph.forms.qdq import Placement, Value

_FEWEST_VALUES = 1024  # for a distribution to be looked at


@dataclass
class Ranges:
    """What calibration saw of the values, and the grids that follow from it.

    Attributes:
        statistics: What was collected.
        refused: Values that could not be observed, and why.
        feeds: How many inputs there were.
        short: For values of which too few numbers were seen for the method, how many inputs it
            would take.
    """

    statistics: Mapping[Need, Any]
    refused: dict[str, str]
    feeds: int
    short: dict[str, int] = field(default_factory=dict)
    _grids: dict[tuple[str, StaticScheme], tuple[Grid | None, str]] = field(default_factory=dict)

    def grid(self, value: Value, scheme: StaticScheme) -> tuple[Grid | None, str]:
        """The grid of a value, or None and why it has none."""
        key = value.name or "", scheme
        if key not in self._grids:
            self._grids[key] = self._grid(value, scheme)
        return self._grids[key]

    def check(self, names: Collection[str], method: str) -> None:
        """Refuse a method that has too few numbers of all of these values.

        Raises:
            DataError: It says how many inputs it takes.
        """
        if names and self.short.keys() >= set(names):
            least = min(self.short[name] for name in names)
            raise DataError(
                f"{method} needs at least {least} inputs like these, not {self.feeds}; "
                "minmax takes any"
            )

    def _grid(self, value: Value, scheme: StaticScheme) -> tuple[Grid | None, str]:
        from onnxshrink.graph.analysis.pointwise import behind
        from onnxshrink.graph.forms import qdq
        from onnxshrink.kernels import ranges

        if (known := qdq.grid_of(value)) is not None:
            return known, ""

        need = Need(value.name or "", Histogram())
        if need not in self.statistics:
            return None, f"cannot be observed: {self.refused.get(need.value, 'nothing makes it')}"
        sums = self.statistics[need]
        if sums.spoiled:
            return None, f"has {int(sums.spoiled)} values that are NaN or infinite"
        low, high = float(sums.low), float(sums.high)
        if low == high:
            return None, f"is always {low:g} with the calibration inputs"
        sample = ranges.Sample(sums, behind(value))
        symmetric = scheme.symmetric_activations
        ends = self._range(value, sums, sample, scheme)
        found = ranges.grid(*ends, scheme.activations, symmetric=symmetric)
        sqnr = sample.sqnr_db(found)
        if sqnr < scheme.least_sqnr:
            kept = f"{scheme.activations} would keep {sqnr:.1f} dB of it"
            return None, f"ranges from {low:.3g} to {high:.3g}: {kept}"
        return found, ""

    def _range(
        self, value: Value, sums: Any, sample: Any, scheme: StaticScheme
    ) -> tuple[float, float]:
        name, low, high = value.name or "", float(sums.low), float(sums.high)
        if scheme.method == "moving-average":
            first, last = self.statistics[Need(name, Extremes())].average_range
            return float(first[0]), float(last[0])
        count, needed = int(sums.counts.sum()), 0
        if scheme.method == "percentile" and scheme.percentile < 100:
            needed = math.ceil(100 / (100 - scheme.percentile))
        elif scheme.method == "entropy":
            needed = _FEWEST_VALUES
        if count < needed:
            self.short[name] = math.ceil(needed * self.feeds / count)
            return low, high
        if scheme.method == "percentile":
            return sums.percentile(scheme.percentile / 100)  # type: ignore[no-any-return]
        if scheme.method == "entropy":
            reach = sums.entropy()
            return max(low, -reach), min(high, reach)
        if scheme.method == "mse":
            symmetric = scheme.symmetric_activations
            return sample.least_squares(  # type: ignore[no-any-return]
                low, high, scheme.activations, symmetric=symmetric
            )
        return low, high


def observe(
    placement: Placement,
    schemes: Mapping[IntegerCandidate, StaticScheme],
    model: Model,
    ctx: Context,
) -> Ranges:
    """Run a model on the inputs and collect what grids and biases need.

    What the same model showed before, on its way to more of its weights, is not collected again.

    Args:
        placement: The values that get grids.
        schemes: The nodes asked for, and how each is computed.
        model: The model.
        ctx: Inputs, worker and progress.
    """
    from onnxshrink.passes.quantize_static.effects import means, some_rows
    from onnxshrink.runtime.calibrate import calibrate

    names = [value.name for value in placement.values if value.name]
    needs = [Need(name, Histogram()) for name in names]
    if any(scheme.method == "moving-average" for scheme in schemes.values()):
        needs += [Need(name, Extremes()) for name in names]
    for one, scheme in schemes.items():
        wanted = [means(one)] * scheme.correct_bias
        wanted += [some_rows(one)] * (scheme.cpu == "vnni" and not scheme.reduce_range)
        needs += [need for need in wanted if need is not None]
    known: Ranges = ctx.memo.setdefault("ranges", Ranges({}, {}, len(ctx.feeds)))
    new = [n for n in needs if n not in known.statistics and n.value not in known.refused]
    found = calibrate(model, new, ctx.feeds, ctx.worker, ctx.progress)
    known.statistics = ChainMap(found, known.statistics)  # type: ignore[arg-type]
    known.refused |= found.refused
    return known


def choose(
    placed: Callable[[Iterable[IntegerCandidate]], Placement], ranges: Ranges,
    schemes: Mapping[IntegerCandidate, StaticScheme],
) -> tuple[Placement, dict[Value, Grid], dict[IntegerCandidate, str]]:  # fmt: skip
    """Leave nodes whose values have no grid in float, until all that is left have one.

    Args:
        placed: From the nodes asked for to a placement.
        ranges: What was observed.
        schemes: The nodes asked for, and how each is computed.

    Returns:
        The placement, the grid of each root, and why nodes were left out.
    """
    refused: dict[IntegerCandidate, str] = {}
    while True:
        placement = placed([one for one in schemes if one not in refused])
        grids: dict[Value, Grid] = {}
        before = len(refused)
        for value in placement.values:
            root = placement.root(value)
            if root in grids:
                continue
            near = [one for one in placement.neighbours(root) if one in schemes]
            found, reason = ranges.grid(root, schemes[near[0]])
            if found is None:
                refused.update((one, f"{root.name!r} {reason}") for one in near)
            else:
                grids[root] = found
        if len(refused) == before:
            return placement, grids, refused
