"""Models that the ``onnx`` wheel ships: load -> find weights -> save must not change an answer.

A fixed share of them, chosen by name.
"""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import shares

from onnxshrink.errors import ModelError, ShrinkError
from onnxshrink.graph import weights
from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.session import SessionOptions
from onnxshrink.runtime.worker import Worker

#: One process makes the cases of the wheel, for all tests that try them.
pytestmark = [pytest.mark.oracle, pytest.mark.xdist_group("oracle")]

# Optimizations of the runtime depend on the order of nodes, which is not what is tested here.
OPTIONS = SessionOptions(optimization="basic")

#: Cases that do not come through, and why.
EXCEPTIONS: dict[str, str] = {}


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    feed: dict[str, Any] | None


def cases(kind: str) -> Iterator[Case]:
    """The share of one kind that is tried, chosen by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the reference implementations
        found = list(_light() if kind == "light" else _shipped(kind))
    return (case for case in found if shares.chosen(case.name))


def _shipped(kind: str) -> Iterator[Case]:
    from onnx.backend.test.loader import load_model_tests

    for case in load_model_tests(kind=kind):
        if case.model is not None:
            feeds = case.data_sets[0][0] if case.data_sets else []
            names = [value.name for value in case.model.graph.input]
            feeds = [_fed(value) for value in feeds]
            yield Case(case.name, case.model, dict(zip(names, feeds, strict=False)))
            continue
        folder = Path(case.model_dir or "")
        model = onnx.load(folder / "model.onnx")
        feed = {}
        for index, value in enumerate(model.graph.input):
            file = folder / "test_data_set_0" / f"input_{index}.pb"
            if file.exists():
                feed[value.name] = _read(file, value)
        yield Case(case.name, model, feed)


def _fed(value: Any) -> Any:
    """An input as ONNX Runtime takes it."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if isinstance(value, list) or value is None else np.asarray(value)


def _read(file: Path, value: onnx.ValueInfoProto) -> Any:
    if value.type.HasField("sequence_type"):
        sequence = onnx.SequenceProto.FromString(file.read_bytes())
        return onnx.numpy_helper.to_list(sequence)
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


def _light() -> Iterator[Case]:
    for path in sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")):
        model = onnx.load(path)
        rng = np.random.default_rng(0)
        stored = {tensor.name for tensor in model.graph.initializer}
        feed = {
            value.name: rng.random(
                [dim.dim_value for dim in value.type.tensor_type.shape.dim], np.float32
            )
            for value in model.graph.input
            if value.name not in stored
        }
        yield Case(path.stem, model, feed)


def accepted(worker: Worker, path: Path) -> bool:
    try:
        worker.check(path)
    except ModelError:
        return False
    return True


def answers(worker: Worker, path: Path, feed: dict[str, Any] | None) -> list[np.ndarray] | None:
    """What ONNX Runtime says, or None where it does not run the model."""
    if feed is None:
        return None
    try:
        return worker.run(path, [feed], OPTIONS).outputs[0]
    except ShrinkError:
        return None


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and (x.tolist() == y.tolist() if x.dtype == object else x.tobytes() == y.tobytes())
        for x, y in zip(a, b, strict=True)
    )


def fault(case: Case, worker: Worker, folder: Path, counts: dict[str, int]) -> str:
    """What is wrong with the model after a round trip; empty when nothing is."""
    before, after = folder / "before.onnx", folder / "after.onnx"
    before.write_bytes(case.model.SerializeToString())
    valid = accepted(worker, before)
    try:
        model = Model.load(before)
        counts["weights"] += len(list(weights.find(model)))
        model.clone().save(after, durable=False)
        counts["equal"] += onnx.load(after) == case.model
    except ModelError as error:
        return f"refused: {error}"
    counts["valid"] += valid
    if valid and not accepted(worker, after):
        return "newly rejected by the checker"
    expected = answers(worker, before, case.feed)
    if expected is None:
        return ""
    counts["ran"] += 1
    found = answers(worker, after, case.feed)
    if found is None:
        return "no longer runs"
    return "" if same(expected, found) else "answers differ"


@pytest.mark.parametrize(
    "kind", ["node", "simple", "pytorch-converted", "pytorch-operator", "light"]
)
def test_a_round_trip_changes_no_answer(kind: str, worker: Worker, tmp_path: Path) -> None:
    faults: dict[str, str] = {}
    counts = dict.fromkeys(("cases", "equal", "weights", "valid", "ran"), 0)
    for case in cases(kind):
        counts["cases"] += 1
        if wrong := fault(case, worker, tmp_path, counts):
            faults[case.name] = wrong
    logging.getLogger(__name__).info("%s: %s", kind, counts)
    assert {name: why for name, why in faults.items() if name not in EXCEPTIONS} == {}
    assert counts["equal"] == counts["cases"] - len(faults)
    assert counts["ran"] >= 0.5 * counts["cases"] > 0  # for the rest ONNX Runtime has no kernel
