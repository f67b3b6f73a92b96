"""Scales the channels of activations: factors are gathered, then each constant is written once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxshrink.graph import surgery
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms.rebuild import Rebuild
from onnxshrink.graph.layers.scalable import Ceiling, ScaledConstant, Site
from onnxshrink.graph.weights.views import WeightView

Array = npt.NDArray[np.floating]


class Rescaling:
    """Factors for the channels of some sites; readers are multiplied, sources divided.

    Args:
        sites: Where one has no source, a multiplication before its readers takes its place.

    Attributes:
        factors: One for each channel of each site; 1 to begin with.
    """

    def __init__(self, sites: Iterable[Site]):
        self.factors = {site: np.ones(site.channels) for site in sites}
        self._parts: dict[ir.Value, list[tuple[Site, ScaledConstant, bool]]] = {}
        for site in self.factors:
            above = [part for part in (site.source, *site.shifts) if part is not None]
            for part in (*above, *site.readers):
                self._parts.setdefault(part.view.value, []).append((site, part, part in above))

    def array(self, view: WeightView) -> Array:
        """The values of a constant with the present factors, in float64."""
        array: Array = view.array().astype(np.float64)
        view.release()
        for site, part, above in self._parts.get(view.value, ()):
            spread = part.channels.spread(self.factors[site], array.shape)
            array = array / spread if above else array * spread
        return array

    def write(self, model: Model) -> Iterator[WeightView]:
        """Give every constant that is concerned its new values; yields each.

        Constants of few bits get powers of two, which leave their digits alone.
        """
        for site, factors in self.factors.items():
            parts = [part for part in (site.source, *site.shifts, *site.readers) if part]
            if not {part.view.dtype for part in parts} <= {ir.DataType.FLOAT, ir.DataType.DOUBLE}:
                self.factors[site] = np.exp2(np.rint(np.log2(factors)))
        for site, factors in self.factors.items():
            if site.source is None:
                _insert(model, site, factors)
            else:
                for ceiling in site.ceilings:
                    _split(model, site.source.view, ceiling, factors)
        for parts_of in self._parts.values():
            view = parts_of[0][1].view
            if all((self.factors[site] == 1).all() for site, _, _ in parts_of):
                continue
            surgery.set_constant(model, view.value, self.array(view))
            yield view


def _split(model: Model, view: WeightView, ceiling: Ceiling, factors: Array) -> None:
    """Give every channel a limit of its own: Min(Relu(x), limit / s) instead of Clip(x)."""
    node = ceiling.node
    rebuild = Rebuild(model, view)
    relu = rebuild.node("Relu", [node.inputs[0]], "r")
    limits = (ceiling.limit / factors).repeat(ceiling.places)
    limits = limits.reshape(-1, *[1] * (-1 - ceiling.axis)).astype(view.dtype.numpy())
    old = [value for value in node.inputs[1:] if value is not None]
    result = rebuild.node("Min", [relu, rebuild.constant(limits, "m")], "y")
    rebuild.put_in_place(node, [result])
    for value in old:
        surgery.forget(model, value)


def _insert(model: Model, site: Site, factors: Array) -> None:
    """Divide an activation before those readers that have the factors."""
    first = site.readers[0]
    rebuild = Rebuild(model, first.view)
    columns = first.view.shape[first.channels.axis] if site.last else site.channels
    inverse = (1 / factors).repeat(columns // site.channels)
    if not site.last:
        inverse = inverse.reshape(-1, *[1] * (len(first.view.shape) - 2))
    scale = rebuild.constant(inverse.astype(first.view.dtype.numpy()), "s")
    result = rebuild.node("Mul", [site.value, scale], "x")
    rebuild.feed([part.view.main.node for part in site.readers], 0, result)
