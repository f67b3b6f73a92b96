"""The same net in another spelling gets the same from every pass, or a row says why not.

Spellings are in ``spellings``; a new pass joins by being there. What is compared is the account of
each weight of the plain spelling: by which method it was changed (words of the note, without
numbers). Another spelling must have the same, or a row that says why not: a skip, or a reason in
parentheses behind the lesser method.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from spellings import NETS, Net

from onnxshrink.contract import Settings
from onnxshrink.graph import operators
from onnxshrink.graph.file.model import Model
from onnxshrink.options import build
from onnxshrink.pipeline import run
from onnxshrink.recipe import find_pass, pass_names
from onnxshrink.report import Step
from onnxshrink.runtime.worker import Worker

_PRUNED = ("prune-magnitude", {"scope": "weight", "max_error": 1.0})
#: Passes that do their work with other options than the defaults, and more than one kind of it.
OPTIONS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "distill": ({"steps": 10, "batch": 8},),
    "tune": ({"steps": 10},),
    "quantize-weights": ({}, {"rounding": "gptq", "dtype": "int4"}),
    "quantize-dynamic": ({}, {"rounding": "gptq"}),
    "specialize": ({"shapes": {}},),
    "split-lowrank": ({"ratio": 0.4},),
    "surgeon": ({"function": "{surgery}:nothing"},),
}
BEFORE = {"correct-bias": _PRUNED, "reconstruct": _PRUNED, "tune": _PRUNED, "distill": _PRUNED}
CASES = [
    pytest.param(name, options, id="-".join([name, *map(str, options.values())][:2]))
    for name in pass_names()
    for options in OPTIONS.get(name, ({},))
]


@functools.cache
def net_of(name: str) -> Net:
    return NETS[name]()


@pytest.mark.parametrize("name", NETS)
def test_spellings_answer_alike(name: str) -> None:
    net, found = net_of(name), {}
    for spelling, proto in net.spellings.items():
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found[spelling] = session.run(None, net.feeds[0])[0]
    for answer in found.values():
        np.testing.assert_allclose(answer, found[net.plain], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("step", "options"), CASES)
def test_passes_treat_spellings_alike(
    name: str, step: str, options: dict[str, Any], worker: Worker, tmp_path: Path
) -> None:
    surgery = tmp_path / "surgery.py"
    surgery.write_text("def nothing(graph):\n    return graph\n")
    given = {
        key: value.format(surgery=surgery) if isinstance(value, str) else value
        for key, value in options.items()
    }
    steps = [*([BEFORE[step]] if step in BEFORE else []), (step, given)]
    net, wanted, broken = net_of(name), {}, []
    for spelling, proto in net.spellings.items():
        source = tmp_path / "model.onnx"
        source.write_bytes(proto.SerializeToString())
        passes = [build(find_pass(one), values, one) for one, values in steps]
        done = run(passes, Model.load(source), Settings(check="quick", feeds=net.feeds), worker)
        row = done.report.steps[-1]
        if spelling == net.plain:
            wanted = methods(row)
            if not wanted:
                return  # nothing to hold the others to
            continue
        there = {tensor.name for tensor in proto.graph.initializer}
        known = {name: method for name, method in wanted.items() if name in there}
        broken += [f"{spelling}: {each}" for each in differences(known, row)]
    assert broken == []


def test_one_row_teaches_every_pass(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its row nobody knows an operator; the law above says what passes do with it."""
    net = net_of("dense")
    monkeypatch.delitem(operators.TABLE, ("com.microsoft", "FusedMatMul"))
    for name, options in (
        ("quantize-weights", {"rounding": "gptq"}), ("quantize-static", {}), ("reconstruct", {}),
        ("prune-wanda", {}), ("split-lowrank", {"ratio": 0.4}), ("smooth", {}),
    ):  # fmt: skip
        model = Model.from_proto(net.spellings["FusedMatMul"])
        settings = Settings(check="quick", feeds=net.feeds)
        done = run([build(find_pass(name), options, name)], model, settings, worker)
        assert not {"w1", "w2"} & set(methods(done.report.steps[-1])), name


def methods(row: Step) -> dict[str, str]:
    """How each weight was changed, by name; without the numbers."""
    named = (change for change in row.changes if change.kind not in ("graph", "model"))
    return {change.what: _words(change.note) for change in named}


def differences(wanted: Mapping[str, str], row: Step) -> list[str]:
    """What was done to the weights of the plain spelling, and here neither done nor explained."""
    if row.status == "rolled back":
        return [f"rolled back: {row.reason}"] * bool(wanted)
    got = methods(row)
    reasons = {skip.what for skip in row.skips}
    explained = {c.what for c in row.changes if re.search(r"\([^)]+\)", c.note)}
    return [
        f"{name}: {method!r}, here {got.get(name, 'no row')!r}"
        for name, method in wanted.items()
        if got.get(name) != method and name not in reasons | explained
    ]


def _words(note: str) -> str:
    """A note without shapes, numbers, and what stands in parentheses."""
    return " ".join(re.sub(r"\[[^]]*\]( -> )?|\([^)]*\)|[\d.]+%?(e-\d+)?", " ", note).split())
