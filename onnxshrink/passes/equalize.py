"""Make the channels of neighbouring weights alike in range, so that they quantize better."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.select import Select, select

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.rescale import Rescaling
    from onnxshrink.graph.layers.scalable import ScaledConstant, Site

_CONVERGED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Make the channels of neighbouring weights alike in range, so that they quantize better.

    Where one weight makes an activation and others read it, with only Relu, pooling and the like
    between them, each channel can be divided by a factor before and multiplied by it behind. The
    answers stay the same, but weights with one scale for the whole tensor (``per_channel: false``)
    and activations waste less of their range on a few large channels (cross-layer equalization,
    1906.04721). Run it after ``clean``, which folds BatchNormalization, and before a quantization.
    Depthwise convolutions gain most; with a scale for each channel there is little to gain.

    Nothing is changed where an activation has other readers, as in residual branches, or where an
    operator such as Sigmoid does not keep factors. Clip at 6 (ReLU6) does not either, unless
    ``ceiling: split`` gives every channel a limit of its own: exact, but one more node and vector,
    which runtimes do not fuse.
    """

    ceiling: Literal["skip", "split"] = option(
        "skip", help="where Clip has an upper limit: leave it alone, or write Min(Relu(x), limits)"
    )
    iterations: int = option(30, help="most rounds over all pairs of weights", ge=1)
    weights: Select = select(min_size=0)

    @property
    def may_grow(self) -> bool:  # type: ignore[override]
        """Limits take some bytes."""
        return self.ceiling == "split"

    inlines = True

    @property
    def bound(self) -> float:
        """Products are rounded otherwise; nothing else changes."""
        return 1e-5

    def apply(self, model: Model, ctx: Context) -> None:
        """Find the pairs, iterate until their ranges agree, and write every weight once."""
        from onnxshrink.graph import weights
        from onnxshrink.graph.layers import scalable
        from onnxshrink.graph.layers.rescale import Rescaling
        from onnxshrink.kernels import equalize

        chosen = {view.name: view for view, _ in ctx.each(self, weights.find(model))}
        found, reasons = scalable.find(model, norms=False)
        pairs = []
        for site in found:
            if reason := self._why_not(site, chosen):
                reasons.update({part.view.name: reason for part in site.readers})
            else:
                pairs.append(site)
        scaling = Rescaling(pairs)
        self._iterate(scaling)
        parts = (part for site in pairs for part in (site.source, *site.readers) if part)
        ranged = {part.view.name for part in parts}
        changed = set()
        for view in scaling.write(model):
            changed.add(view.name)
            note = "follows its weight"
            if view.name in ranged:
                before = equalize.precision(equalize.largest(view.matrix))
                after = equalize.precision(equalize.largest(view.to_matrix(scaling.array(view))))
                note = f"its channels take {after:.0%} of its range, {before:.0%} before"
            ctx.changed(view, view.nbytes, note=note)
        for name, view in chosen.items():
            if name not in changed:
                ctx.skip(view, reasons.get(name, "what it makes is not read by weights alone"))

    def _why_not(self, site: Site, chosen: Container[str]) -> str:
        """Why a site must stay as it is; empty when it need not."""
        if site.why_not:
            return site.why_not
        if site.ceilings and self.ceiling == "skip":
            return f"its input is clipped at {site.ceilings[0].limit:g}; 'ceiling: split' scales it"
        weights = [part.view.name for part in (site.source, *site.readers) if part]
        kept = [name for name in weights if name not in chosen]
        return f"its channels are tied to {kept[0]!r}, which is left alone" if kept else ""

    def _iterate(self, scaling: Rescaling) -> None:
        """Balance pair after pair, since a weight may belong to two, until nothing moves."""
        import numpy as np

        from onnxshrink.kernels import equalize

        for _ in range(self.iterations):
            moved = 0.0
            for site in scaling.factors:
                assert site.source is not None
                read = np.max([_ranges(part, scaling) for part in site.readers], axis=0)
                step = equalize.balance(_ranges(site.source, scaling), read)
                scaling.factors[site] = scaling.factors[site] * step
                moved = max(moved, float(np.abs(np.log2(step)).max(initial=0)))
            if moved < _CONVERGED:
                break


def _ranges(part: ScaledConstant, scaling: Rescaling) -> np.ndarray:
    """The largest magnitude of each channel of a weight as it is now."""
    from onnxshrink.kernels import equalize

    ranges: np.ndarray = equalize.largest(part.channels.apart(scaling.array(part.view)))
    return ranges
