"""How time, memory and disk grow with a model: builds large models, runs the commands on them.

python tools/bench_scale.py FOLDER [NAME ...]: prints a Markdown table. The names are ``bytes`` (2.5
GB, one tensor of them above 2 GB; needs 20 GB of disk), ``nodes`` (50,000), ``initializers``
(100,000), ``nested`` (Ifs 30 deep: protobuf refuses 32) and ``scan`` (10,000 steps); a number
behind one, as in ``nodes:5000``, takes another size: twice the size shows whether a cost is linear.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 1024
_PAUSE = 0.05
_MB = 1e6


def _value(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _weights(rng: np.random.Generator, rows: int) -> np.ndarray:
    found: np.ndarray = rng.standard_normal((rows, _WIDTH), np.float32)
    found /= np.float32(np.sqrt(_WIDTH))
    return found


def build_bytes(folder: Path, million: int) -> Path:
    """A table of 86 % of so many million bytes, and layers; the weights lie in a second file."""
    path, data = folder / "bytes.onnx", "bytes.data"
    rng = np.random.default_rng(0)
    layers = max(1, million * 140_000 // (4 * _WIDTH * _WIDTH))
    rows = {"table": million * 860_000 // (4 * _WIDTH)} | {f"w{i}": _WIDTH for i in range(layers)}
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["h0"])],
        "bytes", [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [_value(f"h{layers}", ["n", _WIDTH])],
    )  # fmt: skip
    for i in range(layers):
        graph.node.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"]))
        graph.node.append(helper.make_node("Tanh", [f"m{i}"], [f"h{i + 1}"]))
    with open(folder / data, "wb") as file:
        for name, count in rows.items():
            stub = onnx.TensorProto(name=name, dims=[count, _WIDTH], data_type=TensorProto.FLOAT)
            stub.data_location = TensorProto.EXTERNAL
            length = 4 * count * _WIDTH
            for key, value in (("location", data), ("offset", file.tell()), ("length", length)):
                stub.external_data.add(key=key, value=str(value))
            for start in range(0, count, 65_536):
                file.write(_weights(rng, min(65_536, count - start)).tobytes())
            graph.initializer.append(stub)
    onnx.save(_model(graph), path)
    return path


def build_nodes(folder: Path, count: int) -> Path:
    """A chain of cheap nodes."""
    names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
    kinds = ("Relu", "Neg", "Abs", "Sigmoid")
    nodes = [helper.make_node(kinds[i % 4], [names[i]], [names[i + 1]]) for i in range(count)]
    graph = helper.make_graph(nodes, "nodes", [_value("x", ["n", 8])], [_value("y", ["n", 8])])
    onnx.save(_model(graph), folder / "nodes.onnx")
    return folder / "nodes.onnx"


def build_initializers(folder: Path, count: int) -> Path:
    """A chain of additions, each of a constant of its own."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("Add", [names[i], f"c{i}"], [names[i + 1]]) for i in range(count)]
    stored = [
        numpy_helper.from_array(rng.standard_normal(8, np.float32), f"c{i}") for i in range(count)
    ]
    graph = helper.make_graph(
        nodes, "initializers", [_value("x", ["n", 8])], [_value("y", ["n", 8])], stored
    )
    onnx.save(_model(graph), folder / "initializers.onnx")
    return folder / "initializers.onnx"


def build_nested(folder: Path, depth: int) -> Path:
    """Ifs in the branches of Ifs."""
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["b"])], "then", [], [_value("b", [])]
    )
    inner.output[0].type.tensor_type.ClearField("shape")
    for i in range(depth):
        other = helper.make_graph(
            [helper.make_node("Abs", ["x"], [f"e{i}"])], f"else{i}", [], [inner.output[0]]
        )
        other.output[0].name = f"e{i}"
        made = helper.make_node(
            "If", ["c"], [f"y{i}"], then_branch=inner, else_branch=other, name=f"if{i}"
        )
        inner = helper.make_graph([made], f"level{i}", [], [other.output[0]])
        inner.output[0].name = f"y{i}"
    given = [_value("x", ["n", 8]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph(inner.node, "nested", given, [_value(f"y{depth - 1}", ["n", 8])])
    onnx.save(_model(graph), folder / "nested.onnx")
    return folder / "nested.onnx"


def build_scan(folder: Path, steps: int) -> Path:
    """A layer in the body of a Scan."""
    weight = numpy_helper.from_array(_weights(np.random.default_rng(0), _WIDTH)[:256, :256], "w")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["row", "w"], ["m"]),
            helper.make_node("Add", ["m", "state"], ["s"]),
            helper.make_node("Tanh", ["s"], ["next"]),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "body", [_value("state", [1, 256]), _value("row", [1, 256])],
        [_value("next", [1, 256]), _value("out", [1, 256])], [weight],
    )  # fmt: skip
    node = helper.make_node("Scan", ["first", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    graph = helper.make_graph(
        [node], "scan", [_value("first", [1, 256]), _value("x", [steps, 1, 256])],
        [_value("last", [1, 256]), _value("y", [steps, 1, 256])],
    )  # fmt: skip
    onnx.save(_model(graph), folder / "scan.onnx")
    return folder / "scan.onnx"


_WHAT: dict[str, tuple[Callable[[Path, int], Path], int]] = {
    "bytes": (build_bytes, 2500),
    "nodes": (build_nodes, 50_000),
    "initializers": (build_initializers, 100_000),
    "nested": (build_nested, 30),
    "scan": (build_scan, 10_000),
}
_STEPS = (
    "inspect {source}",
    "clean {source} {folder}/clean.onnx --check quick",
    "quantize-weights {source} {folder}/int8.onnx --check quick",
    "quantize-weights {source} {folder}/nbits.onnx --dtype int4 --block-size 32 --form nbits "
    "--check quick --max-error 10",
    "pack {folder}/int8.onnx {folder}/packed.onnx",
    "verify {folder}/packed.onnx",
    "unpack {folder}/packed.onnx {folder}/plain.onnx",
    "compare {source} {folder}/int8.onnx --count 2",
)


@dataclass
class Cost:
    """What a command took.

    Attributes:
        seconds: From start to end; on a machine that others use, an upper limit.
        cpu: CPU seconds of its process and of those that it started.
        own: Largest resident bytes of its process.
        child: Largest resident bytes of the processes that it started, together.
        disk: Largest growth of the folder in bytes.
        code: Its exit code.
        said: The last line of stderr.
    """

    seconds: float
    cpu: float
    own: int
    child: int
    disk: int
    code: int
    said: str


def _size(folder: Path) -> int:
    return sum(os.lstat(Path(root, f)).st_size for root, _, fs in os.walk(folder) for f in fs)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(words: list[str], folder: Path) -> Cost:
    """Run a command, looking at it twenty times a second."""
    before, began, cpu = _size(folder), time.monotonic(), _cpu_of_children()
    with open(folder / "stderr", "w+b") as errors:
        running = subprocess.Popen(
            [sys.executable, "-m", "onnxshrink", *words], stdout=subprocess.DEVNULL, stderr=errors
        )
        own = child = disk = 0
        process = psutil.Process(running.pid)
        pause = threading.Event()
        while running.poll() is None:
            try:
                own = max(own, process.memory_info().rss)
                others = process.children(recursive=True)
                child = max(child, sum(other.memory_info().rss for other in others))
                disk = max(disk, _size(folder) - before)
            except (psutil.NoSuchProcess, FileNotFoundError):  # it ended, or renamed, meanwhile
                pass
            pause.wait(_PAUSE)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    seconds = time.monotonic() - began
    cpu = _cpu_of_children() - cpu
    return Cost(seconds, cpu, own, child, disk, running.returncode, lines[-1] if lines else "")


def main() -> None:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(_WHAT))
    asked = parser.parse_args()
    print("| model | command | s | CPU s | MB here | MB in the worker | MB of disk | exit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for text in asked.names:
        name, _, number = text.partition(":")
        build, usual = _WHAT[name]
        size = int(number or usual)
        folder = asked.folder / f"{name}-{size}"
        folder.mkdir(parents=True, exist_ok=True)
        source = build(folder, size)
        for line in _STEPS:
            words = line.format(source=source, folder=folder).split()
            cost = measure(words, folder)
            print(
                f"| {name} {size:,} | {words[0]}{' int4 nbits' * ('nbits' in line)} "
                f"| {cost.seconds:.1f} | {cost.cpu:.1f} | {cost.own / _MB:.0f} "
                f"| {cost.child / _MB:.0f} | {cost.disk / _MB:.1f} | {cost.code}"
                f"{': ' * bool(cost.code)}{cost.said[:100] * bool(cost.code)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
