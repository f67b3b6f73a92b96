"""How quantize-rd stores what it found, and how it meets a size to the byte."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxshrink import files
from onnxshrink.errors import BudgetMissed, DataError
from onnxshrink.pipeline import Context
from onnxshrink.report import Step

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.passes.quantize_rd.rates import StepSearch, StoredWeight

_log = logging.getLogger(__name__)
_LOOKED_UP = 2**20  # smaller tables are not worth the nodes that a lookup of integers takes
_ATTEMPTS = 5
_CLOSE = 0.99  # of a size that was asked for


def store(
    model: Model, stored: Iterable[StoredWeight], vectors: Iterable[WeightView],
    names: Mapping[WeightView, str], came: Mapping[str, tuple[int, int]], ctx: Context,
) -> int:  # fmt: skip
    """Put codes in place of weights, and float16 in that of vectors.

    Args:
        model: The model, which is edited.
        stored: Weights and their codes.
        vectors: Biases and parameters of norms.
        names: What to call the weights in the report.
        came: By those names, bytes of codes in which weights came, if they did: as they are, and
            packed.
        ctx: Where to report.

    Returns:
        Bytes that all codes pack to.
    """
    from onnxshrink.graph.forms import dequantize, integer_codes
    from onnxshrink.graph.forms.rebuild import REBUILD_OVERHEAD
    from onnxshrink.kernels import affine
    from onnxshrink.passes.to_float16 import narrow

    total = 0
    for view, quantized, packed, note, figures in stored:
        kind, before, elements = view.op_type, view.nbytes, view.size
        gains = quantized.nbytes + REBUILD_OVERHEAD < before
        if names[view] in came:
            before, was = came[names[view]]
            gains = packed < was
        if not gains:
            ctx.skip(view, "would not be smaller as integer codes")
            continue
        total += packed
        if integer_codes.takes(view):
            found = integer_codes.on_grid(view, quantized)
            after, sqnr = integer_codes.put_in_place(model, view, found), found.sqnr
        else:
            sqnr = affine.sqnr_db(view.array(), quantized)
            looked_up = view.size >= _LOOKED_UP and dequantize.can_gather(model, view)
            form: dequantize.Form = "gather" if looked_up else "cast-mul"
            after = dequantize.dequantized(model, view, quantized, form)
        ctx.changed(
            names[view], after, note=note, before=before, kind=kind, elements=elements,
            coded=packed, sqnr_db=sqnr, **figures,
        )  # fmt: skip
        view.release()
    for view in vectors:
        narrow(view, model, ctx)
        view.release()
    return total


def store_packed(
    model: Model, search: StepSearch, spend: float, goal: float, vectors: Sequence[WeightView],
    names: Mapping[WeightView, str], came: Mapping[str, tuple[int, int]], ctx: Context,
) -> None:  # fmt: skip
    """Store codes for which the packed model, all of it, takes as many bytes as it may.

    Args:
        model: The model, which becomes the result.
        search: What is known of its weights.
        spend: The squared output error to begin with.
        goal: The bytes.
        vectors: Biases and parameters of norms.
        names: What to call the weights in the report.
        came: By those names, bytes of codes in which weights came, if they did: as they are, and
            packed.
        ctx: Where to report.

    What a file takes beside the codes is only known once it has been packed. So a first guess at
    it is put right by what came of it, which is nearly always all that it needs. A goal that codes
    of some nine bits meet as well is met by these.

    Raises:
        DataError: No grid is coarse enough.
    """
    from onnxshrink.graph import weights
    from onnxshrink.graph.forms.integer_codes import unlocked

    rest = float(model.nbytes() - sum(view.nbytes for view in search.views))
    rest -= sum(view.nbytes // 2 for view in vectors)
    finest = search.finest()
    best: tuple[int, Model, Step] | None = None  # of those that are small enough the largest
    for _ in range(_ATTEMPTS):
        # Between what is close enough and the goal: the guess may err in both directions.
        spend = search.spend_bytes(min(goal * (1 + _CLOSE) / 2 - rest, finest), spend)
        trial, step = model.clone(), Step(ctx.step.name)
        pairs = zip(unlocked(weights.find(model)), weights.find(trial), strict=True)
        twin = {ours.value: replace(other, locked=ours.locked) for ours, other in pairs}
        codes = store(
            trial,
            (one._replace(view=twin[one.view.value]) for one in search.stored(spend)),
            [twin[view.value] for view in vectors],
            {twin[view.value]: name for view, name in names.items()},
            came,
            replace(ctx, step=step),
        )
        found = file_bytes(trial, ctx.storage)
        _log.info("packed to %d bytes, of which %d are codes; the goal is %d", found, codes, goal)
        if found <= goal and (best is None or found > best[0]):
            best = found, trial, step
        easy = finest < goal - rest
        if best is not None and (easy or best[0] >= _CLOSE * goal):
            if easy:
                ctx.warn("smaller than asked for: finer codes would gain nothing")
            break
        rest = found - codes
    if best is None:
        raise DataError(f"{ctx.step.name}: found no grids that pack to {goal:,.0f} bytes")
    _, trial, step = best
    model.adopt(trial)
    ctx.step.changes += step.changes
    ctx.step.skips += step.skips


def file_bytes(model: Model, storage: str) -> int:
    """Bytes of the result: coded where it will be stored so, else packed."""
    from onnxshrink.graph.forms import coded, packed

    if storage == "coded":
        trial = model.clone()
        coded.code(trial)
        return min(trial.nbytes(), model.nbytes())
    with files.scratch() as folder:
        try:
            return packed.save(model, folder / "model.onnx")
        except BudgetMissed:  # it is smaller as it is, and will be written so
            return model.nbytes()
