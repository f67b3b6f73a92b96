"""Prints the sidecar's figures on the weights of any ONNX models, as Markdown.

    python tools/bench_sidecar.py MODEL.onnx... [--seconds S]

Sizes: bits a weight of int8, int4 and 16-entry codebook indices at 0 to 90 % zeros against the
order-0 entropy of each tensor, and against zstd -19 and xz -9 on the same plain tensors; floats
against ZipNN. Speed: decoding against zlib and a copy. zstandard, zipnn and isal are used if they
are installed; none is needed.
"""

from __future__ import annotations

import argparse
import importlib
import lzma
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

from onnxshrink.kernels import entropy
from onnxshrink.kernels.bits import pack as pack_bits
from onnxshrink.kernels.filters import Bytes
from onnxshrink.sidecar import Sidecar, pack
from onnxshrink.sidecar.header import BITS, DEFLATE

Floats = NDArray[np.float32]
Named = list[tuple[str, str, tuple[int, ...], Bytes]]

SPARSITIES = (0.0, 0.5, 0.8, 0.9)


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
    yield "| weights | one thread | two | zlib alone | of zlib | copy | of copy |"
    yield "|---|---|---|---|---|---|---|"
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
            f"| {kind} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[2]:.0f} | "
            f"{rates[0] / rates[2]:.2f} | {rates[3]:.0f} | {rates[0] / rates[3]:.3f} |"
        )


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
        for table in (sizes(arrays), floats(arrays), speed(arrays, options.seconds)):
            for row in table:
                print(row, flush=True)
            print()


if __name__ == "__main__":
    main()
