"""Fix inputs to a value or a shape, and drop branches that are then never taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import DataError, RecipeError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.trials import Feeds


@dataclass(frozen=True, kw_only=True)
class Specialize(Pass):
    """Make a model for one value or one shape of some inputs.

    A speech model with a branch for every sample rate keeps one of them, with ``values: {sr:
    16000}``; conditions on the length of a chunk are decided by ``shapes: {input: [1, 576]}``. The
    inputs stay in the signature, so that callers need not change, but a value that is fed to a
    fixed one is ignored. The result is compared on inputs of these values and shapes only.
    """

    values: Mapping[str, Any] = option({}, help="inputs that always have one value: '{sr: 16000}'")
    shapes: Mapping[str, Any] = option(
        {}, help="inputs that always have one shape: '{input: [1, 576]}'"
    )

    inlines = True
    example = "--shapes '{image: [8, 1, 28, 28]}'"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, shape in self.shapes.items():
            sizes = shape if isinstance(shape, list | tuple) else [None]
            if not all(isinstance(size, int) and size > 0 for size in sizes):
                raise RecipeError(
                    f"{self.name}: shapes: {name!r} takes a list of sizes, not {shape!r}"
                )

    def apply(self, model: Model, ctx: Context) -> None:
        """Fold what follows, branches included."""
        from onnxshrink.graph.rewrite.specialize import specialize

        if not (self.values or self.shapes):
            ctx.skip("inputs", "no value or shape is given")
            return
        before, nodes = model.nbytes(), sum(1 for _ in model.nodes)
        specialize(model, self._arrays(model), self.shapes)
        gone = nodes - sum(1 for _ in model.nodes)
        what = [f"{n} is {v}" for n, v in self.values.items()]
        what += [f"{n} has shape {list(s)}" for n, s in self.shapes.items()]
        note = f"{gone} nodes less"
        ctx.changed(", ".join(what), model.nbytes(), before=before, kind="graph", note=note)

    def inputs(self, model: Model, feeds: Feeds) -> Feeds:
        """Those of the fixed shapes, with the fixed values.

        Raises:
            DataError: None has these shapes.
        """
        values = self._arrays(model)
        wanted = {name: tuple(shape) for name, shape in self.shapes.items()}
        fitting = [
            {**feed, **values}
            for feed in feeds
            if all(feed[name].shape == shape for name, shape in wanted.items() if name in feed)
        ]
        if feeds and not fitting:
            raise DataError(
                f"{self.name}: no input has the shapes {wanted}; "
                "pass --shape or other --calibration"
            )
        return fitting

    def _arrays(self, model: Model) -> dict[str, np.ndarray]:
        """The values in the types of their inputs.

        Raises:
            RecipeError: There is no such input, or the value does not fit it.
        """
        import numpy as np

        from onnxshrink.options import nearest

        known = {value.name or "": value for value in model.inputs}
        arrays = {}
        for name in (*self.values, *self.shapes):
            if name not in known:
                hint = nearest(name, known)
                raise RecipeError(f"{self.name}: the model has no input {name!r}{hint}")
        for name, sizes in self.shapes.items():
            declared = known[name].shape
            if declared is not None and len(declared) != len(sizes):
                raise RecipeError(
                    f"{self.name}: shapes: {name!r} has {len(declared)} axes, not {len(sizes)}"
                )
        for name, given in self.values.items():
            kind = known[name].dtype
            try:
                array = np.array(given, None if kind is None else kind.numpy())
            except (TypeError, ValueError) as error:
                raise RecipeError(f"{self.name}: values: {name!r}: {error}") from error
            shape = known[name].shape
            if shape is not None and len(shape) != array.ndim:
                raise RecipeError(
                    f"{self.name}: values: {name!r} has {len(shape)} axes, not {array.ndim}"
                )
            arrays[name] = array
        return arrays
