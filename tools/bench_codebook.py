"""Measure what codebooks cost: k-means of a large tensor, and the models that they are stored in.

The first table times clustering to 16 entries against a sort of the same values and, where it is
installed, scikit-learn's MiniBatchKMeans; rounds are interleaved, times are ratios to the sort, and
the error is what is left of the variance. The second opens models in ONNX Runtime, each in a
process of its own: load time, memory at its peak and afterwards beyond that of an empty process,
and latency, as ratios to the float model.

    python tools/bench_codebook.py [--million 23] [--size 2048] [--layers 6] [--rounds 3]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxshrink.contract import Settings
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels import codebooks
from onnxshrink.passes.share_codebook import ShareCodebook
from onnxshrink.pipeline import run
from onnxshrink.runtime.bench import bench

ENTRIES = 16
Values = np.ndarray
PRODUCTS: Mapping[str, Mapping[str, object]] = {
    "16 entries": {"scale": "none"},
    "16 entries, scales": {"scale": "channel"},
    "16 entries, uint4": {"scale": "none", "packing": "uint4"},
    "4 entries": {"scale": "none", "bits": 2},
    "256 entries": {"scale": "none", "bits": 8},
}
LOOKUPS: Mapping[str, Mapping[str, object]] = {
    "16 entries, folded": {"form": "fold"},
    "16 entries, looked up": {"form": "gather"},
}


def ours(values: Values) -> Values:
    """Table and codes, as the pass makes them."""
    found: Values = codebooks.encode(values[None], "kmeans", ENTRIES).decode()[0]
    return found


def sklearn(values: Values) -> Values:
    """The same by scikit-learn's MiniBatchKMeans with large batches."""
    from sklearn.cluster import MiniBatchKMeans

    found = MiniBatchKMeans(ENTRIES, batch_size=2**16, random_state=0).fit(values[:, None])
    return np.asarray(found.cluster_centers_[found.labels_, 0])


def clustering(million: float, rounds: int) -> None:
    """Print the first table."""
    values = np.random.default_rng(0).standard_normal(int(million * 1e6)).astype(np.float32)
    ways: dict[str, Callable[[Values], Values]] = {"numpy sort": np.sort, "onnxshrink": ours}
    if importlib.util.find_spec("sklearn"):
        ways["MiniBatchKMeans"] = sklearn
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    error = {}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            found = way(values)
            seconds[name].append(time.perf_counter() - started)
            error[name] = float(np.square(found - values, dtype=np.float64).mean() / values.var())
    print(f"| {million:g} M values, {ENTRIES} entries | seconds | to the sort | error |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds["numpy sort"], strict=True)]
        left = "" if name == "numpy sort" else f"{error[name]:.6f}"
        middle = statistics.median(ratios)
        print(f"| {name} | {statistics.median(times):.2f} | {middle:.2f} | {left} |")


def products(size: int, layers: int) -> onnx.ModelProto:
    """A chain of MatMul."""
    rng = np.random.default_rng(0)
    names = [f"x{at}" for at in range(layers + 1)]
    nodes = [
        helper.make_node("MatMul", [a, f"w{at}"], [b])
        for at, (a, b) in enumerate(itertools.pairwise(names))
    ]
    weights = [
        (rng.standard_normal((size, size)) / size**0.5).astype(np.float32) for _ in range(layers)
    ]
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [8, size])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [8, size])],
        [numpy_helper.from_array(w, f"w{at}") for at, w in enumerate(weights)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def lookups(rows: int = 30_522, width: int = 384) -> onnx.ModelProto:
    """An embedding of a small text encoder."""
    table = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "x"], ["y"])], "embedding",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [8, 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 128, width])],
        [numpy_helper.from_array(table, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def opened(
    folder: Path, title: str, model: onnx.ModelProto, forms: Mapping[str, Mapping[str, object]],
    feed: dict[str, Values],
) -> None:  # fmt: skip
    """Print the second table for one model."""
    paths = [folder / "float.onnx"]
    paths[0].write_bytes(model.SerializeToString())
    for number, options in enumerate(forms.values()):
        step = ShareCodebook(**options)  # type: ignore[arg-type]
        done = run([step], Model.load(paths[0]), Settings(check="off"))
        paths.append(folder / f"{number}.onnx")
        done.model.save(paths[-1])
    found = bench(paths, [feed], rounds=8).models
    first = found[0]
    print(f"\n| {title} | MB | load | peak MB | peak | steady MB | steady | latency |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in zip(["float32", *forms], found, strict=True):
        print(
            f"| {name} | {row.file_bytes / 1e6:.1f} | {row.load_seconds / first.load_seconds:.2f}"
            f" | {row.peak_bytes / 1e6:.0f} | {row.peak_bytes / first.peak_bytes:.2f}"
            f" | {row.steady_bytes / 1e6:.0f} | {row.steady_bytes / first.steady_bytes:.2f}"
            f" | {row.ratio:.2f} |"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--million", type=float, default=23, help="million values to cluster")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of each weight")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3, help="how often to time clustering")
    arguments = parser.parse_args()
    clustering(arguments.million, arguments.rounds)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="onnxshrink-bench-") as name:
        folder, size = Path(name), arguments.size
        feed = {"x0": rng.standard_normal((8, size)).astype(np.float32)}
        title = f"{arguments.layers} MatMul of {size} x {size}"
        opened(folder, title, products(size, arguments.layers), PRODUCTS, feed)
        ids = {"x": rng.integers(0, 30_522, (8, 128))}
        opened(folder, "Gather of 30,522 x 384", lookups(), LOOKUPS, ids)


if __name__ == "__main__":
    main()
