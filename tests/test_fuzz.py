"""Mutated models through the commands: refused in one line, or answered by a model that loads.

The models are the node tests of the onnx wheel, each with a few fields of its messages changed.
``ONNXSHRINK_FUZZ`` says how many: 1,000 here, tens of thousands by hand.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
import shares
from google.protobuf.message import Message
from onnx.backend.test.loader import load_model_tests

from onnxshrink import api
from onnxshrink.errors import ShrinkError, UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.graph.inspect.statistics import inspect_model
from onnxshrink.recipe import Recipe, find_pass
from onnxshrink.runtime.worker import Worker, blamed
from onnxshrink.select import Select

#: One process makes the cases of the wheel, for all tests that try them.
pytestmark = [pytest.mark.fuzz, pytest.mark.xdist_group("oracle")]

CASES = shares.FUZZ
FIRST = int(os.environ.get("ONNXSHRINK_FUZZ_FIRST", "0"))
LARGEST = 20_000
ODD = (0, 1, -1, 2, 7, 255, 2**31 - 1, -(2**31), 2**62, -(2**63), 2**63 - 1)
NOT_UTF8 = b"\xff\xfe"


@functools.cache
def sources() -> list[bytes]:
    """The small node tests of the wheel, and those models in it that are files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the reference implementations
        cases = [case.model for case in load_model_tests(kind="node") if case.model is not None]
    found = [model.SerializeToString(deterministic=True) for model in cases]
    files = Path(onnx.backend.test.__file__).parent.glob("data/*/*/model.onnx")
    found += [file.read_bytes() for file in sorted(files) if file.stat().st_size <= LARGEST]
    return [each for each in found if len(each) <= LARGEST]


def messages(message: Message) -> Iterator[Message]:
    """A message and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                yield from messages(inner)


def mutate(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change one field of one message: another value, one element more or less, or none."""
    every = [m for m in messages(proto) if m.ListFields()]
    message = every[rng.integers(len(every))]
    fields = message.ListFields()
    field, value = fields[rng.integers(len(fields))]
    texts = sorted({o for node in proto.graph.node for o in (*node.input, *node.output)} or {"x"})
    if hasattr(value, "append") or hasattr(value, "add"):
        at = int(rng.integers(len(value)))
        if rng.random() < 0.3:
            del value[at]
        elif field.type == field.TYPE_MESSAGE:
            value.add().CopyFrom(value[at])
        else:
            value[at] = other(field, value[at], texts, rng)
    elif field.type == field.TYPE_MESSAGE or rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, other(field, value, texts, rng))


def other(field: object, value: object, texts: list[str], rng: np.random.Generator) -> object:
    """Another value of the same type."""
    if isinstance(value, str):
        return [*texts, "", "x\n\x1b[31m", value * 2][rng.integers(len(texts) + 3)]
    if isinstance(value, bytes):
        return [b"", value[:-1], value * 2, NOT_UTF8, bytes(len(value))][rng.integers(5)]
    if isinstance(value, float):
        return [0.0, -1.0, 1e38, float("nan"), float("inf")][rng.integers(5)]
    found = int(rng.choice(ODD)) if rng.random() < 0.7 else int(value) + 1  # type: ignore[call-overload]
    if "32" in str(getattr(field, "cpp_type", "")) or getattr(field, "type", 0) == 5:
        return int(np.clip(found, -(2**31), 2**31 - 1))
    return found


def mutant(number: int) -> bytes:
    """A mutated model; the same for the same number."""
    rng = np.random.default_rng([19, number])
    proto = onnx.ModelProto.FromString(sources()[rng.integers(len(sources()))])
    for _ in range(1 + int(rng.integers(3) // 2)):  # one change in two of three, else two
        try:
            mutate(proto, rng)
        except (ValueError, TypeError, OverflowError):  # the field does not take it
            continue
    data = bytearray(proto.SerializeToString())
    if rng.random() < 0.2:  # and sometimes a byte that protobuf did not write
        data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


def applied(name: str, path: Path, out: Path) -> None:
    options = {"weights": Select(min_size=1)} if name == "quantize-weights" else {}
    api.apply_recipe(Recipe((find_pass(name)(**options),)), path, out, api.Options(check="quick"))


@pytest.mark.filterwarnings("ignore")  # of numpy, of values that no model means
def test_mutants(one_worker: None, worker: Worker, tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    failures, alive = [], 0
    for number in range(FIRST, FIRST + CASES):
        path.write_bytes(mutant(number))
        command = ("inspect", "clean", "quantize-weights", "pack")[number % 4]
        try:
            with blamed(path):
                inspect_model(Model.load(path))
            if command == "pack":
                model = Model.load(path)
                with (
                    pytest.MonkeyPatch.context() as patched,
                    blamed(path),
                ):  # small as it is, it is packed
                    patched.setattr(Model, "nbytes", lambda self: 2**40)
                    packed.save(model, out)
                packed.unpack(out, tmp_path / "plain.onnx")
                assert Model.load(tmp_path / "plain.onnx").digest() == model.digest()
            elif command != "inspect":
                applied(command, path, out)
                if not runs(worker, out) and runs(worker, path):
                    failures.append(f"{number}: {command} wrote a model that does not load")
            alive += 1
        except ShrinkError as error:
            if "\n" in str(error).strip():
                failures.append(f"{number}: {command}: more than one line: {error}")
        except Exception as error:
            failures.append(f"{number}: {command}: {type(error).__name__}: {error}"[:300])
        for file in tmp_path.iterdir():
            file.unlink()
    assert failures == []
    assert alive > CASES / 10  # the mutations leave something to work on


def runs(worker: Worker, path: Path) -> bool:
    """Whether ONNX Runtime loads a model."""
    try:
        worker.check(path)
        worker.open(path)
    except UnsupportedModel:
        return True
    except ShrinkError:
        return False
    return True


def test_mutants_are_the_same_every_time() -> None:
    assert [mutant(number) for number in range(3)] == [mutant(number) for number in range(3)]
