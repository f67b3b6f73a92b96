"""What ONNX Runtime's integer kernels compute on the CPU at hand, by numpy.

x86 CPUs without VNNI add two neighbouring products of a uint8 and an int8 in 16 bits, others in
32. What a test expects of such products it computes for the machine that it runs on;
``tools/check_without_vnni`` shows the other kind.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import parser
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


class MatMulInteger(OpRun):
    """The operator as this CPU has it."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, a: np.ndarray, b: np.ndarray, a_zero: Any = None, b_zero: Any = None
    ) -> tuple[np.ndarray]:
        left = a.astype(np.int64) - (0 if a_zero is None else a_zero.astype(np.int64))
        right = b.astype(np.int64) - (0 if b_zero is None else b_zero.astype(np.int64))
        missing = lost(a.reshape(-1, a.shape[-1]), b.T)
        sums = (left @ right).reshape(-1, b.shape[-1]) - missing
        return (sums.reshape(*a.shape[:-1], -1).astype(np.int32),)


def answers(path: Path, feed: dict[str, np.ndarray], *, here: bool) -> list[np.ndarray]:
    """A model's answers by onnx's own evaluator, as this CPU has them or exactly."""
    operators: list[type[OpRun]] = [MatMulInteger] if here else []
    found: list[np.ndarray] = ReferenceEvaluator(onnx.load(path), new_ops=operators).run(None, feed)
    return found
