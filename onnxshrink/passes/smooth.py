"""Move large values from activations into weights, so that 8 bits do for both."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.scalable import ScaledConstant, Site
    from onnxshrink.kernels.observers import ExtremeSums, Need
    from onnxshrink.kernels.smooth import ReadingWeight

_USUAL = 0.5


@dataclass(frozen=True, kw_only=True)
class Smooth(Pass):
    """Move large values from activations into the weights that read them: both quantize well.

    A few channels of a transformer's activations are far larger than the others, and an 8-bit
    activation with one scale has no digits left for the rest. Each channel is divided by a factor
    where it is made, in the norm, factor or weight before it, and its weights are multiplied by it
    (SmoothQuant, 2211.10438). The answers stay the same. Run it before a quantization of
    activations; for weights alone it does nothing good. It needs calibration inputs.

    Where an activation has other readers, such as a residual branch behind a norm, there is nothing
    to take the factors: ``insert`` multiplies it there, which costs one node and some time.
    """

    alpha: float | None = option(
        None,
        help="share of the difficulty that goes into the weights, 0 to 1; unset: what gives each "
        "layer the least error at 8 bits",
        ge=0,
        le=1,
    )
    insert: bool = option(False, help="add a multiplication where nothing takes the factors")
    weights: Select = select()

    @property
    def may_grow(self) -> bool:  # type: ignore[override]
        """Multiplications take some bytes."""
        return self.insert

    inlines = True

    @property
    def bound(self) -> float:
        """Products are rounded otherwise; nothing else changes."""
        return 1e-5

    def needs(self, model: Model) -> Iterable[Need]:
        """The range of every channel; to choose a share, second moments too."""
        from onnxshrink.graph.layers import scalable
        from onnxshrink.graph.weights import second_moments

        found = []
        for site in scalable.find(model, norms=True)[0]:
            read = [p.view for p in site.readers if not self.weights.why_not(p.view)]
            if read and site.value.name and not self._obstacle(site):
                found.append(_range_of(site))
                if self.alpha is None:
                    found += [need for view in read for need in second_moments.needs(view)]
        return found

    def apply(self, model: Model, ctx: Context) -> None:
        """Choose the factors of every activation, and write every weight once."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.layers import scalable
        from onnxshrink.graph.layers.rescale import Rescaling

        chosen = {view.name: view for view, _ in ctx.each(self, weights.find(model))}
        found, reasons = scalable.find(model, norms=True)
        factors: dict[Site, np.ndarray] = {}
        notes: dict[str, str] = {}
        for each in found:
            site, reason = self._fit(each, chosen, ctx)
            values, note = (None, reason) if reason else self._factors(site, ctx)
            if values is not None:
                factors[site] = values
            said = reasons if values is None else notes
            said.update({part.view.name: note for part in site.readers})
        scaling = Rescaling(factors)
        scaling.factors.update(factors)
        changed = set()
        for view in scaling.write(model):
            changed.add(view.name)
            ctx.changed(view, view.nbytes, note=notes.get(view.name, "takes the inverse factors"))
        for name, view in chosen.items():
            if name not in changed:
                ctx.skip(view, reasons.get(name, "is not multiplied with an activation"))

    def _obstacle(self, site: Site) -> str:
        """Why nothing takes the factors of a site; empty when something does."""
        if self.insert:
            return ""
        if site.ceilings:
            return f"its input is clipped at {site.ceilings[0].limit:g}; 'insert' multiplies it"
        return site.why_not

    def _fit(self, site: Site, chosen: Container[str], ctx: Context) -> tuple[Site, str]:
        """A site as it is to be scaled, and why it is not."""
        if site.source is None or site.ceilings:  # with a multiplication for those that want it
            read = tuple(part for part in site.readers if part.view.name in chosen)
            fitted = replace(site, readers=read, source=None, shifts=(), ceilings=())
        else:
            fitted = site
        kept = [part.view.name for part in fitted.readers if part.view.name not in chosen]
        reason = self._obstacle(site)
        if not reason and not fitted.readers:
            return site, "is left alone"
        if not reason and len({part.view.main.node.graph for part in fitted.readers}) > 1:
            reason = "its input is read in several graphs"
        if not reason and kept:
            reason = f"its input is also read by {kept[0]!r}, which is left alone"
        if not reason and not ctx.feeds:
            reason = "there were no calibration inputs"
        if not reason and _range_of(site) not in ctx.statistics:
            reason = "its input could not be observed"
        return fitted, reason

    def _factors(self, site: Site, ctx: Context) -> tuple[np.ndarray | None, str]:
        """The factors of a site and a note on them; or none, and why."""
        import numpy as np

        from onnxshrink.kernels import equalize, smooth

        sums: ExtremeSums = ctx.statistics[_range_of(site)]
        if not sums.low.size or len(sums.low) % site.channels:
            return None, "its input has no values, or channels that vary in number"
        low = sums.low.reshape(site.channels, -1).min(1)
        high = sums.high.reshape(site.channels, -1).max(1)
        activation = np.maximum(-low, high)
        weight = np.max(
            [equalize.largest(p.channels.apart(p.view.array())) for p in site.readers], axis=0
        )
        if not np.isfinite(weight).all():
            return None, "holds NaN or infinity"
        if not np.isfinite(activation).all() or not (activation.any() and weight.any()):
            return None, "its input, or all that reads it, is zero or not finite throughout"
        share = self.alpha
        if share is None:
            products = [p for part in site.readers if (p := _product(part, ctx)) is not None]
            share, values = smooth.best(low, high, weight, products)
            if not products:
                share = _USUAL
            if share is None:
                return None, "no factors make its error smaller"
        values = smooth.factors(activation, weight, share)
        before, after = (equalize.precision(x) for x in (activation, activation / values))
        used = f"channels of its input take {after:.0%} of the range, {before:.0%} before"
        return values, f"alpha {share:g}; {used}"


def _range_of(site: Site) -> Need:
    """The statistic that says how large the channels of an activation become."""
    from onnxshrink.kernels.observers import Extremes, Need

    return Need(site.value.name or "", Extremes(-1 if site.last else 1))


def _product(part: ScaledConstant, ctx: Context) -> ReadingWeight | None:
    """A reader and the second moment of its input; None where that was not collected."""
    import numpy as np

    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels.smooth import ReadingWeight

    view = part.view
    known = second_moments.of(ctx.statistics, view)
    if known is None:
        return None
    numbers = part.channels.spread(np.arange(part.channels.count, dtype=np.float64), view.shape)
    channel = known.fold(view.to_matrix(np.broadcast_to(numbers.astype(int), view.shape)))
    return ReadingWeight(known.fold(view.matrix.astype(np.float64)), known.mean(), channel[:, :1])
