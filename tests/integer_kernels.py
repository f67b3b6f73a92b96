"""What ONNX Runtime's integer kernels compute on the CPU at hand, by numpy.

x86 CPUs without VNNI add two neighbouring products of a uint8 and an int8 in 16 bits, others in
32. What a test expects of such products it computes for the machine that it runs on;
``tools/check_without_vnni`` shows the other kind.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.lib.stride_tricks import sliding_window_view
from onnx import inliner, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxshrink.kernels import saturation

_PRODUCT = """<ir_version: 8, opset_import: ["": 17]>
    g (uint8[m, k] x, int8[k, n] w) => (int32[m, n] y) { y = MatMulInteger(x, w) }"""


def products(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``rows @ weights.T`` of this CPU: uint8 [rows, inputs] and int8 [outputs, inputs]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = parser.parse_model(_PRODUCT).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"x": rows, "w": np.ascontiguousarray(weights.T)})[0]
    return answer


@functools.cache
def saturates() -> bool:
    """Whether the largest products overflow here."""
    (sums,) = products(np.full((1, 64), 255, np.uint8), np.full((16, 64), 127, np.int8))
    return bool((sums != 64 * 255 * 127).all())


def lost(rows: np.ndarray, weights: np.ndarray) -> np.ndarray | int:
    """What this CPU leaves out of ``rows @ weights.T``; uint8 weights have another kernel."""
    if saturates() and (rows.dtype, weights.dtype) == (np.uint8, np.int8):
        return saturation.lost(rows, weights)
    return 0


def lost_by_a_convolution(
    x: np.ndarray, zero: int, weights: np.ndarray, pads: Sequence[int], group: int
) -> np.ndarray | int:
    """What this CPU leaves out of a convolution of codes, [images, outputs, height, width].

    Channels are neighbours, then columns, then rows; what lies outside the image is ``zero``.
    Depthwise kernels add in 32 bits everywhere.

    Args:
        x: [images, channels, height, width].
        zero: The code of zero.
        weights: [outputs, channels / group, rows, columns].
        pads: As the operator has them.
        group: As the operator has it.
    """
    if weights.shape[1] == 1:
        return 0
    around = [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    windows = sliding_window_view(
        np.pad(x, around, constant_values=zero), weights.shape[2:], (2, 3)
    )
    images, _, height, width = windows.shape[:4]
    split = windows.reshape(images, group, -1, *windows.shape[2:]).transpose(1, 0, 3, 4, 5, 6, 2)
    kernels = weights.reshape(group, -1, *weights.shape[1:]).transpose(0, 1, 3, 4, 2)
    found = [
        np.broadcast_to(
            lost(rows.reshape(images * height * width, -1), each.reshape(len(each), -1)),
            (images * height * width, len(each)),
        )
        for rows, each in zip(split, kernels, strict=True)
    ]
    return np.concatenate(found, 1).reshape(images, height, width, -1).transpose(0, 3, 1, 2)


class MatMulInteger(OpRun):
    """The operator as this CPU has it."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, a: np.ndarray, b: np.ndarray, a_zero: Any = None, b_zero: Any = None
    ) -> tuple[np.ndarray]:
        left = a.astype(np.int64) - (0 if a_zero is None else a_zero.astype(np.int64))
        right = b.astype(np.int64) - (0 if b_zero is None else b_zero.astype(np.int64))
        sums = np.asarray(left @ right)
        a, b = (a if a.ndim > 1 else a[None]), (b if b.ndim > 1 else b[:, None])  # vectors
        places = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        rows = np.broadcast_to(a, (*places, *a.shape[-2:]))
        columns = np.broadcast_to(b, (*places, *b.shape[-2:]))
        matrices = sums.reshape(*places, a.shape[-2], b.shape[-1])
        for place in np.ndindex(places):
            matrices[place] -= lost(rows[place], columns[place].T)
        return (sums.astype(np.int32),)


def answers(path: Path, feed: dict[str, np.ndarray], *, here: bool) -> list[np.ndarray]:
    """A model's answers by onnx's own evaluator, as this CPU has them or exactly."""
    operators: list[type[OpRun]] = [MatMulInteger] if here else []
    model = inliner.inline_local_functions(onnx.load(path))  # which would not see the operators
    found: list[np.ndarray] = ReferenceEvaluator(model, new_ops=operators).run(None, feed)
    return found
