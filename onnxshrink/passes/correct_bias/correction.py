"""The other half of ``correct-bias``: means are measured on both models, and biases moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxshrink.pipeline import Context
from onnxshrink.report import Change
from onnxshrink.trials import Feeds

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.layers.fitting import Outline
    from onnxshrink.kernels.observers import Need


_TINY = 1e-30


class Correction:
    """Holds a model's layers to the means of another's.

    Args:
        model: The model; replaced by the corrected one where that is closer to the original.
        original: The model before it was compressed.
        ctx: Inputs, where to run models, and where to report.
    """

    def __init__(self, model: Model, original: Model, ctx: Context):
        from onnxshrink.graph.analysis import operands

        self._model, self._original, self._ctx, self._worker = model, original, ctx, ctx.worker
        self._before = {value.name: tensor for value, tensor in operands.constants(original)}
        self._now = {value.name: tensor for value, tensor in operands.constants(model)}

    def why_not(self, outline: Outline) -> str:
        """Why a layer needs no correction, or can have none; empty when it can."""
        import numpy as np

        from onnxshrink.graph.file import tensors
        from onnxshrink.graph.layers import bias

        if not outline.known:
            return f"the original model has no value {outline.output!r}"
        before, now = self._before.get(outline.name), self._now.get(outline.name)
        if before is not None and now is not None:
            same = tuple(before.shape) == tuple(now.shape) and before.dtype == now.dtype
            same = same and np.array_equal(before.numpy(), now.numpy(), equal_nan=True)
            tensors.release(before)
            tensors.release(now)
            if same:
                return "its weight is as in the original"
        return bias.why_not(outline)

    def measured(self, chosen: Sequence[Outline], rounds: int | None) -> None:
        """Correct layer after layer by what the means of their outputs are off."""
        from onnxshrink.graph.layers import fitting

        wanted = self._means(self._original, chosen)
        trial = self._model.clone()
        rows: list[Change] = []
        for part in _in_rounds(chosen, rounds):
            outputs = {outline.output for outline in part}
            # The same layers in the model as it is by now.
            found = [o for o in fitting.outlines(trial, self._original) if o.output in outputs]
            means = self._means(trial, found)
            for outline in found:
                self._ctx.progress("correcting biases", len(rows), len(chosen))
                rows += self._correct(trial, outline, wanted, means)
        self._ctx.progress("correcting biases", len(chosen), len(chosen))
        self._keep(trial, rows, chosen)

    def computed(self, chosen: Sequence[Outline], feeds: Feeds) -> None:
        """Correct all layers by the errors of their weights times the means of their inputs.

        Args:
            chosen: The layers.
            feeds: To measure those means; without, they follow from batch normalizations.
        """
        import numpy as np

        from onnxshrink.graph.layers import fitting
        from onnxshrink.graph.rewrite import clean
        from onnxshrink.runtime.compare_values import compute

        folded = self._original.clone()
        clean.fold_batch_norms(folded)  # where the model at hand has them folded, too
        readers = [
            fitting.LayerReader(model, lambda proto, inputs: compute(proto, inputs, self._worker))
            for model in (folded, self._model)
        ]
        counterparts = {o.output: o for o in fitting.outlines(folded, self._original) if not o.norm}
        inputs = self._inputs(chosen, feeds)
        trial = self._model.clone()
        found = {o.output: o for o in fitting.outlines(trial, self._original)}
        rows: list[Change] = []
        for outline in chosen:
            before = counterparts.get(outline.output)
            mean = inputs.get(_input(outline))
            if before is None or mean is None:
                reason = (
                    "has no counterpart in the original"
                    if before is None
                    else "the mean of its input is not known"
                )
                self._ctx.skip(outline.name, reason)
                continue
            try:
                held = [r.layer(o).held for r, o in zip(readers, (before, outline), strict=True)]
            except ValueError as error:
                self._ctx.skip(outline.name, str(error))
                continue
            if held[0].matrix.shape != held[1].matrix.shape:
                self._ctx.skip(outline.name, "its channels are not those of the original")
                continue
            off = _behind(held[0].matrix - held[1].matrix, mean)
            size = float(
                np.linalg.norm(off) / max(np.linalg.norm(_behind(held[0].matrix, mean)), _TINY)
            )
            rows.append(self._moved(trial, found[outline.output], off, size))
        self._keep(trial, rows, chosen if feeds else ())

    def _inputs(self, chosen: Sequence[Outline], feeds: Feeds) -> Mapping[str, np.ndarray]:
        """The mean of every channel of the layers' inputs in the original."""
        from onnxshrink.graph.layers import bias, means
        from onnxshrink.kernels.observers import Extremes, Need
        from onnxshrink.runtime.calibrate import calibrate

        if not feeds:
            return means.means(self._original)
        needs = {_input(o): Need(_input(o), Extremes(bias.product_of(o).in_axis)) for o in chosen}
        return _seen(needs, calibrate(self._original, needs.values(), feeds, self._worker))

    def _keep(self, trial: Model, rows: list[Change], judged: Sequence[Outline]) -> None:
        """Adopt the corrected model, where it is judged only if its outputs are closer."""
        if judged and rows:
            wanted = self._ctx.reference(self._original)
            before, after = (wanted.distance(model) for model in (self._model, trial))
            if not after < before:
                for outline in judged:
                    self._ctx.skip(outline.name, "corrections bring the outputs no closer")
                return
        if rows:
            self._model.adopt(trial)
            self._ctx.step.changes.extend(rows)

    def _moved(self, trial: Model, outline: Outline, off: np.ndarray, size: float) -> Change:
        """Move the bias of one layer."""
        from onnxshrink.graph.layers import bias

        what, old, new = bias.shift(trial, outline, off, self._before.get(outline.name))
        note = f"mean outputs of {outline.name} were {size:.2g} off"
        return Change(what, outline.op_type, old, new, note, {"mean_error": size})

    def _correct(
        self, trial: Model, outline: Outline, wanted: Mapping[str, Any], means: Mapping[str, Any]
    ) -> Iterator[Change]:
        """Move the bias of one layer by what its means are off."""
        import numpy as np

        name = outline.output
        if name not in wanted or name not in means:
            self._ctx.skip(outline.name, "its output could not be observed")
        elif wanted[name].shape != means[name].shape:
            self._ctx.skip(outline.name, "its channels are not those of the original")
        else:
            off = wanted[name] - means[name]
            size = float(np.linalg.norm(off) / max(np.linalg.norm(wanted[name]), _TINY))
            yield self._moved(trial, outline, off, size)

    def _means(self, model: Model, outlines: Iterable[Outline]) -> dict[str, np.ndarray]:
        """Mean output of every channel, by the name of the output; without what was not seen."""
        from onnxshrink.runtime.calibrate import calibrate

        needs = {outline.output: _need(outline) for outline in outlines}
        found = calibrate(model, needs.values(), self._ctx.feeds, self._worker)
        return _seen(needs, found)


def _seen(needs: Mapping[str, Need], found: Mapping[Need, Any]) -> dict[str, np.ndarray]:
    """Means by name; without values that no input reached, as in branches that none takes."""
    return {
        name: found[need].mean
        for name, need in needs.items()
        if need in found and found[need].feeds
    }


def _input(outline: Outline) -> str:
    value = None if outline.product is None else outline.product.activation
    return "" if value is None else value.name or ""


def _behind(matrix: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The means behind a layer of [groups, outputs, inputs], of its input's channels before it."""
    import numpy as np

    groups, _, width = matrix.shape
    inputs = mean.reshape(groups, -1)
    spread = inputs.repeat(width // inputs.shape[1], axis=1)  # over the places of a kernel
    behind: np.ndarray = np.einsum("goi,gi->go", matrix, spread).reshape(-1)
    return behind


def _need(outline: Outline) -> Need:
    from onnxshrink.graph.layers import bias
    from onnxshrink.kernels.observers import Extremes, Need

    return Need(outline.output, Extremes(bias.product_of(outline).out_axis))


def _in_rounds(chosen: Sequence[Outline], rounds: int | None) -> Iterator[list[Outline]]:
    """Layers by how many come before them, in so many rounds of about as many depths."""
    import numpy as np

    depths = sorted({outline.depth for outline in chosen})
    count = min(rounds or len(depths), len(depths))
    for part in np.array_split(depths, count):
        yield [outline for outline in chosen if outline.depth in part]
