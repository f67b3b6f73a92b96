"""How quantize-static stores weights: as operands of integer kernels, or rebuilt at load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from onnxshrink.kernels.observers import Need
from onnxshrink.passes.quantize_static import effects
from onnxshrink.passes.quantize_static.scheme import StaticScheme
from onnxshrink.progress import counted
from onnxshrink.report import Step
from onnxshrink.select import Select

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.integer_kernels import IntegerCandidate
    from onnxshrink.graph.forms.layout import Layout
    from onnxshrink.graph.forms.qdq import Emitter, Placement, Value
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.ranges import Grid
    from onnxshrink.passes.quantize_static.preparing import Preparation

_DAMAGE = 0.005  # of the outputs of a product: below it 7 bits would do more harm
_ANY_PAIR = 64  # two codes so large do not overflow 16 bits, whichever they are
_LARGE_OPERAND = 2**14  # such as a table of positions


@dataclass
class Products:
    """Stores the weights of products, each once.

    Attributes:
        emitter: Puts nodes in.
        statistics: Means and rows of what weights are multiplied with.
        model: The model.
        codes: The codes that a product's weight came in, if it did.
        biases: Products whose bias became integers, the bytes of it, and its signal to noise ratio
            where there was one before.
        overflowing: Weights that CPUs without VNNI would compute wrongly, and by how much.
        kept: Weights that kept their codes.
    """

    model: Model
    emitter: Emitter
    statistics: Mapping[Need, Any]
    codes: Callable[[IntegerCandidate], Quantized | None] = lambda one: None
    biases: list[tuple[IntegerCandidate, int, dict[str, float]]] = field(default_factory=list)
    overflowing: dict[str, float] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    _stored: dict[Any, Quantized] = field(default_factory=dict)

    def store(
        self, candidate: IntegerCandidate, scheme: StaticScheme, on: Grid
    ) -> tuple[int, Quantized, str] | None:
        """Put codes in place of a product's weight and bias.

        Args:
            candidate: The product; its weight may be in place already, for another product.
            scheme: How.
            on: The grid of its activation.

        Returns:
            Bytes that the weight takes now, about; its codes; and a note. None where that was done
            for another product.

        Raises:
            ValueError: The weight holds NaN, infinity, or values too large.
        """
        import numpy as np

        from onnxshrink.graph.forms import dequantize
        from onnxshrink.kernels import metrics

        view = candidate.weight
        assert view is not None
        first = view.value not in self._stored
        note = ""
        if first:
            self._stored[view.value], note = self._codes(candidate, scheme, on)
        stored = self._stored[view.value]
        bias = None if candidate.bias is None else candidate.bias.numpy().astype(np.float64)
        bias = None if bias is None else bias.reshape(-1)
        need = effects.means(candidate)
        if scheme.correct_bias and need is not None and need in self.statistics:
            moved = effects.shift(candidate, stored, self.statistics[need].mean)
            if moved.any():  # not of codes that the weight came in
                bias = -moved if bias is None else bias - moved
        if bias is not None and first:
            stored = effects.widened(view, stored, bias, on.scale)
            if scheme.cpu == "any":  # rounding anew may take a pair of codes one too far
                stored = for_any_cpu(candidate, scheme, stored, on)
            self._stored[view.value] = stored
        form: Literal["dq", "wide-dq"] = "wide-dq" if view.name in self.kept else "dq"
        nbytes = dequantize.dequantized(self.model, view, stored, form) if first else 0
        if bias is not None:
            scale = (stored.scale.astype(np.float32) * np.float32(on.scale)).reshape(-1)
            if scale.size != bias.size:
                scale = scale[:1].reshape(())
            exact = np.clip(np.rint(bias / scale), -(2**31), 2**31 - 1).astype(np.int32)
            zero = np.zeros(scale.shape, np.int32)
            self.emitter.store(candidate.node, 2, exact, scale, zero)
            error = {}
            if candidate.bias is not None:
                before = candidate.bias.numpy().reshape(-1)
                error["sqnr_db"] = metrics.sqnr_db(before, exact * scale)
            taken = exact.nbytes + scale.nbytes + zero.nbytes
            self.biases.append((candidate, taken, error))
        return (nbytes, stored, note) if first else None

    def store_constants(self, candidate: IntegerCandidate, scheme: StaticScheme) -> None:
        """Put codes in place of what a function such as Add takes beside activations."""
        import numpy as np

        from onnxshrink.graph.read import constant
        from onnxshrink.kernels import ranges

        for index in candidate.constants:
            value = candidate.node.inputs[index]
            tensor = None if value is None else constant(value)
            assert tensor is not None
            array = tensor.numpy()
            on = ranges.grid(float(array.min()), float(array.max()), scheme.activations)
            scale, zero = np.array(on.scale, np.float32), np.array(on.zero, on.dtype)
            codes = np.asarray(on.codes(array))  # numpy makes a scalar of a scalar
            self.emitter.store(candidate.node, index, codes, scale, zero)

    def _codes(
        self, candidate: IntegerCandidate, scheme: StaticScheme, on: Grid
    ) -> tuple[Quantized, str]:
        note = f"{scheme.dtype} with {on.dtype}"
        known = self.codes(candidate)
        if known is not None and _fits(candidate, known):
            assert candidate.weight is not None
            self.kept.add(candidate.weight.name)
            return self._kept(candidate, scheme, known, on)
        if scheme.reduce_range:
            return quantized(candidate, scheme, bits=7), note + ", 7 bits"
        stored = quantized(candidate, scheme)
        if scheme.cpu == "any":
            return self._for_any(candidate, scheme, stored, on)
        need = effects.some_rows(candidate)
        if need is None or need not in self.statistics:
            return stored, note
        damage = effects.saturation(candidate, stored, self.statistics[need].rows, on)
        if damage > _DAMAGE and candidate.weight is not None:
            self.overflowing[candidate.weight.name] = damage
        return stored, note

    def _kept(
        self, candidate: IntegerCandidate, scheme: StaticScheme, stored: Quantized, on: Grid
    ) -> tuple[Quantized, str]:
        """The codes that a weight came in, but for channels that would overflow, and a note."""
        from onnxshrink.passes import _rounding

        single, safe = replace(scheme, per_channel=True), stored
        if scheme.cpu == "any" and for_any_cpu(candidate, single, stored, on) is not stored:
            way = candidate.way
            convolves = way is not None and way.convolves
            safe = _rounding.kept(layout(candidate, single), stored, channels_last=convolves)
        return safe, f"{safe.dtype} with {on.dtype}, {_rounding.kept_note(stored, safe)}"

    def _for_any(
        self, candidate: IntegerCandidate, scheme: StaticScheme, stored: Quantized, on: Grid
    ) -> tuple[Quantized, str]:
        """Codes that CPUs without VNNI compute rightly too, and a note."""
        from onnxshrink.passes import _rounding

        safe = for_any_cpu(candidate, scheme, stored, on)
        note = f"{scheme.dtype} with {on.dtype}"
        if safe is stored:
            return stored, note
        if on.dtype == "uint8" and _rounding.is_too_coarse(layout(candidate, scheme), safe):
            wider = replace(scheme, dtype="uint8")
            return quantized(candidate, wider), f"uint8 with {on.dtype}, for CPUs without VNNI"
        return safe, note + ", coarser for CPUs without VNNI"


def quantized(candidate: IntegerCandidate, scheme: StaticScheme, *, bits: int = 8) -> Quantized:
    """The codes of a product's weight; one scale where it is the left operand of MatMul.

    Raises:
        ValueError: It holds NaN, infinity, or values too large.
    """
    from onnxshrink.kernels import affine

    laid = layout(candidate, scheme)
    kind: Any = scheme.dtype.replace("8", str(bits))
    stored = affine.quantize(
        laid.values(), kind, laid.axes, symmetric=scheme.symmetric, rounding="balanced"
    )
    return replace(stored, dtype=scheme.dtype)


def layout(candidate: IntegerCandidate, scheme: StaticScheme) -> Layout:
    """Which elements of a product's weight share a scale."""
    from onnxshrink.graph.forms.layout import Layout

    view = candidate.weight
    assert view is not None
    axes = tuple(range(len(view.shape)))
    one_channel = scheme.per_channel and candidate.operands == (0,) and len(view.axes.out) == 1
    return Layout(view, view.shape, view.axes.contract if one_channel and _agreed(view) else axes)


def _fits(candidate: IntegerCandidate, stored: Quantized) -> bool:
    """Whether an integer kernel takes scales as these lie: one, or one for each output channel."""
    view, shape = candidate.weight, stored.scale.shape
    assert view is not None
    if stored.scale.size == 1:
        return True
    one_channel = candidate.operands == (0,) and len(view.axes.out) == 1 and _agreed(view)
    return one_channel and all(shape[axis] == 1 for axis in view.axes.contract)


def _agreed(view: WeightView) -> bool:
    """Whether all uses of a weight see its axes alike: some may see it transposed."""
    return len({use.axes.out for use in view.uses}) == 1


def for_any_cpu(
    candidate: IntegerCandidate, scheme: StaticScheme, stored: Quantized, on: Grid
) -> Quantized:
    """The same weight in codes that CPUs without VNNI compute rightly too.

    They are the very ones where that is so already: of types whose products are not added up in 16
    bits, of left operands, and of depthwise convolutions, which have a kernel of their own.
    """
    import numpy as np

    from onnxshrink.graph import read
    from onnxshrink.passes import _rounding

    view, way = candidate.weight, candidate.way
    assert view is not None
    convolves = way is not None and way.convolves
    groups = read.integer(candidate.node, "group", 1) if convolves else 1
    depthwise = groups == view.shape[0] > 1 and view.shape[1] == 1
    if stored.dtype != "int8" or on.dtype not in ("int8", "uint8") or depthwise:
        return stored
    if candidate.operands != (0,):
        return stored
    if np.abs(stored.codes.astype(np.int16)).max() <= _ANY_PAIR:
        return stored
    laid = layout(candidate, scheme)
    if _agreed(view) and not _rounding.overflows(laid, stored, channels_last=convolves):
        return stored
    if not stored.centred or not _agreed(view):
        return quantized(candidate, scheme, bits=7)
    return _rounding.coarser(laid, stored, channels_last=convolves)


def store(
    work: Preparation, placement: Placement, grids: Mapping[Value, Grid],
    schemes: Mapping[IntegerCandidate, StaticScheme], statistics: Mapping[Need, Any],
) -> None:  # fmt: skip
    """Put codes in place of weights, then the nodes around them, and report it.

    Args:
        work: The model, prepared.
        placement: The nodes that are quantized, and the values between them.
        grids: The grid of each root.
        schemes: The nodes asked for, and how each is computed.
        statistics: Means and rows of what weights are multiplied with.
    """
    import numpy as np

    from onnxshrink.graph.forms import qdq
    from onnxshrink.kernels import affine

    model, ctx = work.model, work.ctx
    emitter = qdq.Emitter(model)
    products = Products(model, emitter, statistics, work.codes)
    for one in counted(ctx.progress, ctx.step.name, [*placement.sites.values()]):
        view = one.weight
        if view is None:
            if one in schemes:
                products.store_constants(one, schemes[one])
                ctx.changed(one.name, 0, kind=one.op_type, note="with integers")
            continue
        known = work.original(one.node, 1 - one.operands[0]) or (view.name, view.nbytes)
        stored = products.store(one, schemes[one], grids[placement.root(one.inputs[0])])
        if stored is not None:
            nbytes, codes, note = stored
            sqnr = affine.sqnr_db(view.array(), codes)
            error = {"sqnr_db": sqnr} if np.isfinite(sqnr) else {}
            ctx.changed(
                known[0], nbytes, before=known[1], kind=one.op_type, note=note,
                elements=view.size, **error,
            )  # fmt: skip
        view.release()
    for one, nbytes, error in products.biases:
        name, before = work.original(one.node, 2) or (f"{one.name}.bias", 0)
        note = "int32" if before else "int32, new"
        if schemes[one].correct_bias:
            note += ", takes back what rounding its weight adds"
        ctx.changed(name, nbytes, before=before, kind="bias", note=note, **error)
    if found := products.overflowing:
        worst = max(found, key=found.__getitem__)
        many = "1 weight" if len(found) == 1 else f"{len(found)} weights"
        ctx.warn(
            f"the file is for CPUs with VNNI: others would get {many} wrong, {worst!r} by "
            f"{found[worst]:.2g} of its outputs; 'cpu: any' is right on all"
        )
    if products.kept:  # integers already: their kernels take scales of activations besides
        ctx.step.may_grow = True
    emitter.emit(placement, grids)


def store_others(work: Preparation, select: Select, others: Literal["int8", "keep"]) -> None:
    """Store as integers the weights that no integer kernel takes, rebuilt at load.

    Args:
        work: The model, prepared.
        select: The weights that may be touched.
        others: Whether these are.
    """
    from onnxshrink.graph import weights
    from onnxshrink.passes.quantize_weights import QuantizeWeights

    work.put_back()
    ctx, kept, known, reasons = work.ctx, [], {}, {}
    for view in weights.find(work.model):
        if not view.uses:
            if work.came_with(view.name):
                ctx.skip(view, view.why_not)
            continue
        reason = select.left_out(work.alias(view)) or view.locked
        if others == "keep":
            reason = reason or "no integer kernel takes it"
        least = select.min_size
        if view.main.is_one_by_one:  # norms and biases: few bytes, much harm
            least = max(least, _LARGE_OPERAND)
        if view.size < least:
            reason = f"fewer than {least} elements"
        if reason:
            kept.append(view.name)
            ctx.skip(view, reason)
        known[view.name] = work.original(view.main.node, view.main.index)
        reasons[view.name] = work.why_stored(view)
    quiet = replace(ctx, step=Step("others"))  # its rows get the names that the weights came with
    chosen = Select(keep=tuple(kept), min_size=select.min_size)
    QuantizeWeights(vectors="keep", weights=chosen).apply(work.model, quiet)
    for row in quiet.step.changes:
        name, nbytes = known[row.what] or (row.what, row.before)
        note = row.note + f" ({reasons[row.what]})" * bool(reasons.get(row.what))
        ctx.changed(
            name, row.after, before=nbytes, kind=row.kind, note=note, elements=row.elements,
            **row.error,
        )  # fmt: skip
