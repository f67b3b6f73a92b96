"""Finds out which of our stored forms a runtime computes rightly, and writes it as a profile.

    python tools/probe_target.py openvino --provider OpenVINO --python ../openvino/bin/python
    python tools/probe_target.py web --web tests/readers/js
    python tools/probe_target.py cpu-vnni --provider CPU
    python tools/probe_target.py cpu --provider CPU --python tools/python_without_vnni

Every form is written by our own passes into models of a few nodes. A form is ``right`` where the
answers are as near to the float model's as on the CPU provider without its integer kernels (of a
CPU with VNNI, for some operators have no others), ``wrong`` where they are not, ``helped`` where
they are but the provider leaves nodes to another, and else refused with a reason. What nodes are
like that are not right, and of which none is in a model that is, is what ``--target`` avoids. The
profile goes to ``onnxshrink/targets/NAME.json``; the table is printed as Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import parser

from onnxshrink.contract import Settings
from onnxshrink.errors import ShrinkError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, phrases
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass
from onnxshrink.report import Table
from onnxshrink.runtime.compare import compare
from onnxshrink.runtime.places import Finding, Place, compare_places, javascript, providers
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker
from onnxshrink.search.platform import FULL_RANGE, TARGETS, Profile

HEADER = '<ir_version: 8, opset_import: ["": 17]> '
#: Of a place's error to that of the CPU provider: more is another answer, not another rounding.
_AS_NEAR = 1.5
_SLACK = 2e-3
_MODELS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "MatMul": (
        "g (float[N, 64] x) => (float[N, 32] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        {"a": (64, 96), "b": (96, 32)},
    ),
    "Gemm": (
        "g (float[N, 64] x) => (float[N, 32] y) "
        "{ h = Gemm<transB=1>(x, a) r = Relu(h) y = Gemm(r, b) }",
        {"a": (96, 64), "b": (96, 32)},
    ),
    "Conv": (
        "g (float[N, 8, 12, 12] x) => (float[N, 16, 1, 1] y) { h = Conv<pads=[1,1,1,1]>(x, a) "
        "r = Relu(h) d = Conv<group=32, pads=[1,1,1,1]>(r, b) e = Conv(d, c) "
        "y = GlobalAveragePool(e) }",
        {"a": (32, 8, 3, 3), "b": (32, 1, 3, 3), "c": (16, 32, 1, 1)},
    ),
    "Gather": (
        "g (int64[N, 6] x) => (float[N, 6, 32] y) { t = Gather(a, x) y = MatMul(t, b) }",
        {"a": (256, 64), "b": (64, 32)},
    ),
    "LSTM": (
        "g (float[6, N, 16] x) => (float[6, 1, N, 24] y) "
        "{ y = LSTM<hidden_size=24>(x, a, b) }",
        {"a": (1, 96, 16), "b": (1, 96, 24)},
    ),
}  # fmt: skip
#: Form -> the pass that writes it, and its options.
FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "float": ("clean", {}),
    "float16": ("to-float16", {}),
    **{
        f"{dtype} {form}{f' block {block}' if block else ''}": (
            "quantize-weights", {"dtype": dtype, "form": form, "block_size": block},
        )
        for dtype in ("int8", "uint8", "int4", "uint4", "int2", "float8e4m3fn")
        for form, block in (("cast-mul", 0), ("dq", 0), ("dq", 32))
    },
    **{
        f"{dtype} nbits block 32": (
            "quantize-weights", {"dtype": dtype, "form": "nbits", "block_size": 32},
        )
        for dtype in ("int8", "int4", "uint4", "int2")
    },
    "codebook fold": ("share-codebook", {"bits": 4, "form": "fold"}),
    "codebook gather": ("share-codebook", {"bits": 4, "form": "gather"}),
    "rate-distortion codes": ("quantize-rd", {"bits_per_weight": 3.0}),
    "static int8": ("quantize-static", {"dtype": "int8"}),
    FULL_RANGE[0]: ("quantize-static", {"dtype": "int8", "cpu": "vnni"}),
    "static int8 reduced": ("quantize-static", {"dtype": "int8", "reduce_range": True}),
    "static uint8": ("quantize-static", {"dtype": "uint8"}),
    "dynamic int8": ("quantize-dynamic", {"dtype": "int8"}),
    FULL_RANGE[1]: ("quantize-dynamic", {"dtype": "int8", "cpu": "vnni"}),
    "dynamic uint8": ("quantize-dynamic", {"dtype": "uint8"}),
}  # fmt: skip


def float_model(name: str) -> onnx.ModelProto:
    """One of the models of a few nodes, with weights as trained ones are spread."""
    source, shapes = _MODELS[name]
    rng = np.random.default_rng(0)
    model = parser.parse_model(HEADER + source)
    for weight, shape in shapes.items():
        fan_in = shape[-1] if name in ("LSTM", "Gather") else int(np.prod(shape[1:]))
        values = rng.standard_t(6, shape) / np.sqrt(fan_in)
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(values.astype(np.float32), weight)
        )
    return model


def inputs(name: str, count: int = 16) -> list[dict[str, np.ndarray]]:
    """Inputs for it."""
    rng = np.random.default_rng(1)
    shape = {"Conv": (2, 8, 12, 12), "LSTM": (6, 2, 16)}.get(name, (4, 64))
    if name == "Gather":
        return [{"x": rng.integers(0, 256, (2, 6))} for _ in range(count)]
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def written(folder: Path, worker: Worker) -> Iterator[tuple[str, str, Path, Path]]:
    """Form, operator, the float model, and the model in this form where the pass writes it."""
    for operator in _MODELS:
        original = folder / f"{operator}.onnx"
        onnx.save(float_model(operator), original)
        for form, (name, options) in FORMS.items():
            settings = Settings(feeds=inputs(operator), check="off")
            weights: dict[str, object] = {} if name == "clean" else {"min_size": 0}
            try:
                step = build(find_pass(name), options | weights, form)
                result = run([step], Model.load(original), settings, worker)
                if name != "clean" and not result.report.changed:
                    continue
                path = folder / f"{operator}-{form.replace(' ', '-')}.onnx"
                result.model.save(path)
                yield form, operator, original, path
                if form == "rate-distortion codes":
                    path = folder / f"{operator}-coded.onnx"
                    coded.save(result.model, path)
                    yield "coded", operator, original, path
            except ShrinkError as error:
                logging.getLogger(__name__).info("%s of %s: %s", form, operator, error)


def verdict(here: float, floats: float, finding: Finding) -> str:
    """``right``, ``helped``, ``wrong`` with its error, or why it does not run.

    Args:
        here: The error on the CPU provider.
        floats: That of the float model in the place, which may compute in half precision.
        finding: What was found there.
    """
    if finding.comparison is None:
        return f"refused: {finding.refusal[:160]}"
    error = finding.comparison.relative_error
    if not error <= _AS_NEAR * here + floats + _SLACK:
        return f"wrong: error {error:.3g}, {here:.3g} on the CPU provider"
    return f"helped: {finding.elsewhere}" if finding.elsewhere else "right"


def probe(place: Place, worker: Worker) -> Profile:
    """What a place does with every form on every operator, and what is to be avoided there."""
    forms: dict[str, dict[str, str]] = {}
    floats: dict[str, float] = {}
    right, avoid = set[str](), dict[str, str]()
    about: dict[str, str] = {}
    exact = SessionOptions(accuracy_level=0)
    plain = replace(exact, optimization="disable")
    with tempfile.TemporaryDirectory() as name:
        for form, operator, original, path in written(Path(name), worker):
            feeds = inputs(operator, 4)
            own = compare(
                original, path, feeds, options_a=exact, options_b=plain, worker=worker
            )  # fmt: skip
            (other,) = compare_places(
                original, path, feeds, [place], options_a=exact, worker=worker
            )
            if other.comparison is not None:
                engine = other.comparison.options_b
                about = {"engine": f"{engine['engine']} {engine['version']}"}
            if form == "float" and other.comparison is not None:
                floats[operator] = other.comparison.relative_error
                said = f"right: error {floats[operator]:.1e}"
            else:
                said = verdict(own.relative_error, floats.get(operator, 0.0), other)
            forms.setdefault(form, {})[operator] = said
            found = phrases.find(Model.load(path))
            if said.startswith("right"):
                right |= found
            else:
                avoid |= dict.fromkeys(found - avoid.keys(), said)
    avoid = {phrase: said for phrase, said in sorted(avoid.items()) if phrase not in right}
    return Profile(place=place.label, **about, forms=forms, avoid=avoid)


def show(name: str, profile: Profile) -> str:
    """The table in Markdown."""
    table = Table(name, ("form", *_MODELS))
    for form, row in profile.forms.items():
        table.add(form, *(row.get(operator, "-") for operator in _MODELS))
    return table.to_markdown()


def main() -> None:
    """Probe and write."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("name")
    where = asked.add_mutually_exclusive_group(required=True)
    where.add_argument("--provider")
    where.add_argument("--node")
    where.add_argument("--web")
    asked.add_argument("--python")
    options = asked.parse_args()
    if options.provider:
        (place,) = providers([options.provider], options.python, 0)
    else:
        runtime = "onnxruntime-node" if options.node else "onnxruntime-web"
        place = javascript(runtime, options.node or options.web, 0)
    with Worker() as worker:
        profile = probe(place, worker)
    TARGETS.mkdir(exist_ok=True)
    data = json.dumps(asdict(profile), indent=1) + "\n"
    (TARGETS / f"{options.name}.json").write_text(data)
    print(show(options.name, profile))


if __name__ == "__main__":
    main()
