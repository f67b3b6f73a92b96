#!/usr/bin/env python3
"""What `tools/benchmark` runs in the environments of other tools, at their defaults.

    python -I tools/rivals.py WAY IN OUT INPUTS.npz

Needs nothing but the tool that it runs: `RIVALS` says what an environment holds.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple


class Rival(NamedTuple):
    """What is installed, and the ways in which it is run."""

    packages: tuple[str, ...]
    ways: tuple[str, ...]


RIVALS = {
    "onnxruntime": Rival(
        ("onnxruntime==1.32.0", "onnx==1.22.0", "sympy"), ("quantize_dynamic", "quantize_static")
    ),
    "onnx-shrink-ray": Rival(
        ("onnx-shrink-ray==0.0.11", "onnxruntime==1.32.0", "onnx==1.22.0"), ("quantize_weights",)
    ),
    "onnxslim": Rival(("onnxslim==0.1.98", "onnx==1.22.0", "onnxruntime==1.32.0"), ("slim",)),
    "onnxsim": Rival(("onnxsim==0.8.1", "onnx==1.22.0", "onnxruntime==1.32.0"), ("simplify",)),
}


def _feeds(path: str) -> list[dict[str, Any]]:
    import numpy as np

    found: dict[int, dict[str, Any]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("|")
            found.setdefault(int(number), {})[name] = arrays[key]
    return [found[number] for number in sorted(found)]


def quantize_dynamic(source: str, out: str, data: str) -> None:
    """ONNX Runtime's dynamic quantization."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, out)


def quantize_static(source: str, out: str, data: str) -> None:
    """ONNX Runtime's static quantization, prepared and per channel as its guide advises."""
    import tempfile
    from pathlib import Path

    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self.feeds = iter(_feeds(data))

        def get_next(self) -> Any:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder, "prepared.onnx"))
        quant_pre_process(source, prepared)
        quantize_static(prepared, out, Reader(), per_channel=True)


def quantize_blocks(source: str, out: str, data: str) -> None:
    """ONNX Runtime's int4 codes for MatMul and Gather, as onnxruntime-genai's builder asks for."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    found = MatMulNBitsQuantizer(
        onnx.load(source), bits=4, block_size=32, is_symmetric=True, accuracy_level=4,
        op_types_to_quantize=("MatMul", "Gather"), quant_axes=(("MatMul", 0), ("Gather", 1)),
    )  # fmt: skip
    found.process()
    found.model.save_model_to_file(out, False)


def quantize_weights(source: str, out: str, data: str) -> None:
    """onnx-shrink-ray's integer weights."""
    import onnx
    from onnx_shrink_ray.shrink import quantize_weights

    onnx.save(quantize_weights(onnx.load(source)), out)


def slim(source: str, out: str, data: str) -> None:
    """The defaults of onnxslim."""
    import onnxslim

    onnxslim.slim(source, out)


def simplify(source: str, out: str, data: str) -> None:
    """The defaults of onnxsim."""
    import onnx
    import onnxsim

    model, checked = onnxsim.simplify(source)
    if not checked:
        raise SystemExit("onnxsim: its own check failed")
    onnx.save(model, out)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
