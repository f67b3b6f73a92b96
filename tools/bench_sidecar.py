"""Prints the sidecar's figures on the weights of any ONNX models, as Markdown.

    python tools/bench_sidecar.py MODEL.onnx... [--seconds S]

Sizes: bits a weight of int8, int4 and 16-entry codebook indices at 0 to 90 % zeros against the
order-0 entropy of each tensor, and against zstd -19 and xz -9 on the same plain tensors; floats
against ZipNN. Speed: decoding against zlib and a copy, and with two threads against one beside what
two threads that share nothing gain at that moment (on a busy machine, little). Memory: the peak of
`onnxshrink.session()` against loading the plain model. zstandard, zipnn and isal are used if they
are installed; none is needed.
"""

from __future__ import annotations

import argparse
import importlib
import lzma
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.kernels import entropy
from onnxshrink.kernels.bits import pack as pack_bits
from onnxshrink.kernels.filters import Bytes
from onnxshrink.sidecar import Sidecar, pack
from onnxshrink.sidecar.header import BITS, DEFLATE

Floats = NDArray[np.float32]
Named = list[tuple[str, str, tuple[int, ...], Bytes]]

SPARSITIES = (0.0, 0.5, 0.8, 0.9)

# What a child does: it loads a model, and prints the growth of its resident memory, peak and after.
_LOAD = """
import sys
import onnxshrink.runtime.child as child
import onnxshrink.runtime.packed as packed
import onnxshrink.runtime.session as plain
plain.open_session(sys.argv[2])  # whatever a first session loads and allocates
child._start_over()
before = child.memory()[0]
session = (packed.session if sys.argv[3] == "packed" else plain.open_session)(sys.argv[1])
after, peak = child.memory()
print(peak - before, after - before)
"""


def weights(path: str) -> list[Floats]:
    """The float weights of a model with at least two dimensions and 1024 elements."""
    graph = onnx.load(path).graph
    tensors = list(graph.initializer)
    tensors += [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
    arrays = [
        onnx.numpy_helper.to_array(t).astype(np.float32)
        for t in tensors
        if t.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    ]
    return [a for a in arrays if a.ndim > 1 and a.size >= 1024]


def pruned(weight: Floats, sparsity: float) -> Floats:
    """A weight with the smallest magnitudes set to zero."""
    if not sparsity:
        return weight
    return np.where(np.abs(weight) < np.quantile(np.abs(weight), sparsity), np.float32(0), weight)


def rounded(weight: Floats, levels: int) -> NDArray[np.int8]:
    """Symmetric integers with a scale for each output channel (or row of a table)."""
    matrix = weight.reshape(len(weight), -1)
    peaks = np.abs(matrix).max(1, keepdims=True)
    scale = np.where(peaks > 0, peaks, 1) / levels
    return np.rint(matrix / scale).astype(np.int8)


def indices(weight: Floats) -> Bytes:
    """Indices into a codebook of 16 values by Lloyd's algorithm; zero is one of them."""
    flat = weight.reshape(-1)
    sample = flat[:: max(1, flat.size // 65536)]
    sample = sample[sample != 0]
    book = np.unique(np.quantile(sample, (np.arange(15) + 0.5) / 15)).astype(np.float32)
    for _ in range(10):
        owner = np.searchsorted((book[1:] + book[:-1]) / 2, sample)
        counts = np.bincount(owner, minlength=book.size)
        sums = np.bincount(owner, sample, minlength=book.size)
        book = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), book)).astype(np.float32)
    codes: Bytes = np.searchsorted((book[1:] + book[:-1]) / 2, flat).astype(np.uint8)
    codes += 1
    codes[flat == 0] = 0
    return codes


def integer_tensors(kind: str, arrays: list[Floats], sparsity: float) -> Named:
    """The weights as one of the integer kinds."""
    named: Named = []
    for number, array in enumerate(arrays):
        weight = pruned(array, sparsity)
        if kind == "int8":
            dtype = "INT8"
            data: Bytes = rounded(weight, 127).reshape(-1).view(np.uint8)
        else:
            int4: Bytes = rounded(weight, 7).reshape(-1).view(np.uint8)
            dtype = "UINT4"
            data = pack_bits(int4 & 15 if kind == "int4" else indices(weight), 4)
        named.append((f"{number}", dtype, (weight.size,), data))
    return named


def float_tensors(kind: str, arrays: list[Floats]) -> Named:
    """The weights as float32 or bfloat16."""
    if kind == "fp32":
        return [(f"{i}", "FLOAT", a.shape, _bytes(a)) for i, a in enumerate(arrays)]
    halves = [(a.view(np.uint32) >> 16).astype(np.uint16) for a in arrays]
    return [(f"{i}", "BFLOAT16", a.shape, _bytes(a)) for i, a in enumerate(halves)]


def sizes(arrays: list[Floats]) -> Iterator[str]:
    """Rows of the table of bits a weight."""
    zstd = _optional("zstandard")
    yield (
        "| weights | zeros | entropy | chunks | of entropy | worst | file | zstd -19 | xz -9 | "
        "filters |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for kind in ("int8", "int4", "codebook"):
        for sparsity in SPARSITIES:
            tensors = integer_tensors(kind, arrays, sparsity)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.pack"
                header = pack(path, tensors, data_name="m.data")
                total = path.stat().st_size
            count = sum(shape[0] for _, _, shape, _ in tensors)
            ideal = [entropy.order0_bits(data, BITS[dtype]) for _, dtype, _, data in tensors]
            bits = sum(h * t[2][0] for h, t in zip(ideal, tensors, strict=True)) / count
            worst = max(
                e.bits_per_weight / h
                for e, h in zip(header.tensors, ideal, strict=True)
                if e.elements >= 65536
            )
            coded = 8 * sum(e.packed for e in header.tensors) / count
            codecs = (_zstd(zstd), _xz)
            others = [
                8 * sum(len(code(data.tobytes())) for *_, data in tensors) / count if code else None
                for code in codecs
            ]
            used = sorted({str(e.how) for e in header.tensors})
            cells = [f"{value:.3f}" if value is not None else "-" for value in others]
            yield (
                f"| {kind} | {sparsity:.0%} | {bits:.3f} | {coded:.3f} | {coded / bits:.4f} | "
                f"{worst:.4f} | {8 * total / count:.3f} | {' | '.join(cells)} | {', '.join(used)} |"
            )


def floats(arrays: list[Floats]) -> Iterator[str]:
    """Rows of the table of floats."""
    zipnn = _optional("zipnn")
    zstd = _optional("zstandard")
    yield "| weights | raw bytes | pack | ZipNN | zstd -19 | packed at |"
    yield "|---|---|---|---|---|---|"
    for kind in ("fp32", "bf16"):
        tensors = float_tensors(kind, arrays)
        raw = sum(data.size for *_, data in tensors)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.pack"
            begun = time.perf_counter()
            pack(path, tensors, data_name="m.data")
            seconds = time.perf_counter() - begun
            total = path.stat().st_size
        theirs = None
        if zipnn:
            coder = zipnn.ZipNN(
                input_format="byte", bytearray_dtype="float32" if kind == "fp32" else "bfloat16"
            )
            theirs = sum(len(coder.compress(bytearray(data.tobytes()))) for *_, data in tensors)
        code = _zstd(zstd)
        plain = sum(len(code(data.tobytes())) for *_, data in tensors) if code else None
        cells = [f"{size / raw:.2%}" if size else "-" for size in (total, theirs, plain)]
        yield f"| {kind} | {raw:,} | {' | '.join(cells)} | {raw / seconds / 1e6:.0f} MB/s |"


def speed(arrays: list[Floats], seconds: float) -> Iterator[str]:
    """Rows of the table of decoding speeds, in MB of unpacked tensor a second."""
    yield "| weights | one thread | two | gain | attainable | zlib | of zlib | copy | of copy |"
    yield "|---|---|---|---|---|---|---|---|---|"
    cases = [
        ("fp32", float_tensors("fp32", arrays)),
        ("int8", integer_tensors("int8", arrays, 0)),
        ("int8, 80 % zeros", integer_tensors("int8", arrays, 0.8)),
        ("int4", integer_tensors("int4", arrays, 0)),
        ("int4, 90 % zeros", integer_tensors("int4", arrays, 0.9)),
    ]
    for kind, tensors in cases:
        raw = sum(data.size for *_, data in tensors)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.pack"
            pack(path, tensors, data_name="m.data")
            times = []
            for threads in (1, 2):
                with Sidecar.open(path, threads=threads) as opened:
                    out = {e.name: np.empty(e.nbytes, np.uint8) for e in opened.entries.values()}
                    times.append(_seconds(seconds, _read, opened, out))
            with Sidecar.open(path) as opened:
                start = path.stat().st_size - opened.header.chunks[-1].offset
                start -= opened.header.chunks[-1].packed
                data = path.read_bytes()[start:]
                chunks = [c for c in opened.header.chunks if c.method == DEFLATE]
        coded = [data[c.offset : c.offset + c.packed] for c in chunks]
        alone = _seconds(seconds, _inflate_all, coded)
        whole = np.concatenate([data for *_, data in tensors])
        target = np.empty_like(whole)
        copy = _seconds(seconds, np.copyto, target, whole)
        rates = [raw / t / 1e6 for t in (*times, alone, copy)]
        yield (
            f"| {kind} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / rates[0]:.2f} | "
            f"{attainable(seconds):.2f} | {rates[2]:.0f} | "
            f"{rates[0] / rates[2]:.2f} | {rates[3]:.0f} | {rates[0] / rates[3]:.3f} |"
        )


def attainable(seconds: float) -> float:
    """What two threads gain over one when neither ever waits for the other."""
    noise = np.random.default_rng(0).integers(0, 64, 1 << 22, np.uint8).tobytes()
    coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    coded = coder.compress(noise) + coder.flush()  # one call: the interpreter's lock is let go once
    with ThreadPoolExecutor(2) as pool:
        one = _seconds(seconds, lambda: list(pool.map(_inflate_all, [[coded]])))
        two = _seconds(seconds, lambda: list(pool.map(_inflate_all, [[coded], [coded]])))
    return 2 * one / two


def memory(path: str) -> Iterator[str]:
    """Rows of the table of memory: a model as it is, with external data, and packed."""
    yield "| model | weights | peak | of weights | loaded |"
    yield "|---|---|---|---|---|"
    model = Model.load(path)
    with tempfile.TemporaryDirectory() as folder:
        external, small = Path(folder) / "external.onnx", Path(folder) / "packed.onnx"
        model.save(external, "external")
        packed.save(model, small)
        with packed.open_pack(small) as opened:
            total = opened.header.data_length
        for name, file in (("single file", path), ("external data", external), ("packed", small)):
            command = [sys.executable, "-c", _LOAD, os.fspath(file), _tiny(folder), name]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak, after = map(int, text.split())
            yield (
                f"| {name} | {total / 1e6:.1f} MB | {peak / 1e6:.1f} MB | {peak / total:.2f} | "
                f"{after / 1e6:.1f} MB |"
            )


def _tiny(folder: str) -> str:
    """A model of one node."""
    path = Path(folder) / "tiny.onnx"
    values = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "tiny", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return os.fspath(path)


def _read(opened: Sidecar, out: dict[str, Bytes]) -> None:
    for name, array in out.items():
        opened.read(name, array)


def _inflate_all(coded: list[bytes]) -> None:
    for payload in coded:
        zlib.decompress(payload, -15)


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=9)


def _seconds(at_least: float, work: Callable[..., object], *arguments: Any) -> float:
    """The best time of a few runs."""
    best, end = float("inf"), time.perf_counter() + at_least
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        work(*arguments)
        best = min(best, time.perf_counter() - start)
    return best


def _bytes(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _zstd(module: Any) -> Callable[[bytes], bytes] | None:
    return module.ZstdCompressor(level=19).compress if module else None


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="ONNX files")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring each speed")
    options = parser.parse_args()
    fast = "isal" if _optional("isal") else "zlib"
    print(f"numpy {np.__version__}, {os.cpu_count()} processors, inflate by {fast}\n")
    for model in options.models:
        arrays = weights(model)
        count = sum(a.size for a in arrays)
        print(f"## {Path(model).parent.name}/{Path(model).name}: {count:,} weights\n")
        speeds = speed(arrays, options.seconds)
        for table in (sizes(arrays), floats(arrays), speeds, memory(model)):
            for row in table:
                print(row, flush=True)
            print()


if __name__ == "__main__":
    main()
