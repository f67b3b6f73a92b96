"""Measure the memory that quantizing a model of several gigabytes takes in this process.

The model is made up: MatMul nodes with float32 weights as external data, in a sparse file, so that
it takes neither disk nor time to make. Its weights are zeros, which cost as much to quantize as any
others.

    python tools/bench_memory.py [--nodes 5000] [--size 362]
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import run

MEGABYTE = 1e6


def build(path: Path, nodes: int, size: int) -> int:
    """Write a chain of ``nodes`` MatMul with weights of [size, size]; return its bytes."""
    block = size * size * 4
    data = path.with_name("weights.bin")
    with open(data, "wb") as file:
        file.truncate(block * nodes)
        # One weight in every tensor, so that scales differ.
        for index in range(nodes):
            file.seek(index * block)
            file.write(np.float32(index + 1).tobytes())
    graph = onnx.GraphProto(name="chain")
    graph.input.append(helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, size]))
    graph.output.append(helper.make_tensor_value_info(f"x{nodes}", TensorProto.FLOAT, [1, size]))
    for index in range(nodes):
        weight = graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT)
        weight.dims.extend([size, size])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", data.name), ("offset", index * block), ("length", block),
        ):  # fmt: skip
            weight.external_data.add(key=key, value=str(value))
        node = helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"])
        graph.node.append(node)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return block * nodes


def peak() -> float:
    """The most resident memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE


def main() -> None:
    """Build, quantize, save, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--size", type=int, default=354, help="rows and columns of each weight")
    parser.add_argument("--dtype", default="int8")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as name:
        folder = Path(name)
        # Temporary tensors of the run lie there too, so that nothing is left behind.
        tempfile.tempdir = os.fspath(folder)
        before = build(folder / "model.onnx", arguments.nodes, arguments.size)
        started, base = time.perf_counter(), peak()
        model = Model.load(folder / "model.onnx")
        loaded = peak()
        step = QuantizeWeights(dtype=arguments.dtype)
        result = run([step], model, Settings(check="off"))
        quantized = peak()
        after = result.model.save(folder / "out.onnx", "external")
        seconds = time.perf_counter() - started
        (row,) = result.report.steps
        print(f"nodes        {arguments.nodes:,}")
        print(f"bytes        {before:,} -> {after:,} ({before / after:.2f}x), {row.status}")
        print(f"weights      {len(row.changes):,} changed, {len(row.skips):,} left alone")
        print(f"peak memory  {base:.0f} MB imported, {loaded:.0f} MB loaded, "
              f"{quantized:.0f} MB quantized, {peak():.0f} MB saved")  # fmt: skip
        print(f"time         {seconds:.1f} s")


if __name__ == "__main__":
    main()
