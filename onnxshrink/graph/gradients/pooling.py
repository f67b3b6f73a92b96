"""The mean or the largest of each window."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxshrink.graph.gradients.application import Application, Gradients, Rule
from onnxshrink.graph.gradients.terms import Term
from onnxshrink.graph.gradients.windows import Windows


def _average(op: Application) -> Gradients:
    """Each value is part of the windows that it lies in, and of their means by their counts."""
    shape, tape = op.integers("kernel_shape", ()), op.tape
    windows = Windows.of(op, tape.integers(shape), op.x, op.y)
    ones = tape.constant(np.ones((1, 1, *shape), op.x.dtype.numpy()))
    x, g = _one_channel(op.x), _one_channel(op.dy)
    full = x.zeros() + 1
    if op.integer("count_include_pad", 0) and (pads := op.integers("pads", ())):
        half = len(pads) // 2
        after = tape.integers([0, 0, *pads[half:]])
        full = full.pad(tape.integers([0, 0, *pads[:half]]), after, 1)
        full = full.pad(after * 0, windows.after - after)
    else:
        full = windows.covered(full)
    shares = g / windows.gather(full, ones).with_axes(g.rank)
    return [windows.spread(shares, ones).as_shaped(op.x)]


def _one_channel(term: Term) -> Term:
    """All channels as samples of one."""
    places = term.sizes[2:]
    size = term.tape.joined([term.tape.integers([-1, 1]), places])
    return term.reshape(size).shaped((None, 1, *(term.shape or ())[2:]))


def _largest(op: Application) -> Gradients:
    """It says itself where it found them."""
    _, where = op.again(op.x, dtypes=[None, ir.DataType.INT64])
    return [op.dy.scattered(where, op.x)]


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "AveragePool"): _average,
    ("", "MaxPool"): _largest,
}
