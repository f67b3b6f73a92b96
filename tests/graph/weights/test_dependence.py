"""How an operand depends on its constants, for every form in which we store weights."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import normal, parsed
from weight_passes import apply

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.weights.dependence import Dependence, Origin
from onnxshrink.options import build
from onnxshrink.recipe import find_pass
from onnxshrink.runtime.compare_values import compute
from onnxshrink.runtime.worker import Worker

#: Passes and options, and for each constant that may be refitted: what reads it first, its size.
FORMS: list[tuple[str, dict[str, Any], list[tuple[str, int]]]] = [
    ("quantize-weights", {}, [("Mul", 40)]),
    ("quantize-weights", {"form": "dq"}, [("DequantizeLinear", 40)]),
    ("quantize-weights", {"dtype": "int4", "block_size": 32}, [("Mul", 160)]),
    ("quantize-weights", {"dtype": "uint4", "block_size": 32, "symmetric": False, "form": "dq"},
     [("DequantizeLinear", 160)]),
    ("quantize-weights", {"dtype": "uint8", "symmetric": False}, [("Mul", 40)]),
    ("share-codebook", {"bits": 4, "scale": "none"}, [("Gather", 16)]),
    ("share-codebook", {"bits": 3, "scale": "channel"}, [("Gather", 16), ("Mul", 40)]),
    ("share-codebook", {"width": 2, "bits": 4, "scale": "none"}, [("Gather", 32)]),
    ("share-codebook", {"rows": 8, "bits": 2, "scale": "none"}, [("Gather", 20)]),
    ("share-codebook", {"method": "hash"}, [("Gather", 640)]),
    ("prune-magnitude", {"store": "sparse", "scope": "weight"}, [("Gather", 2561)]),
    ("to-float16", {}, [("MatMul", 5120)]),
]  # fmt: skip


def read(model: Model, worker: Worker) -> tuple[Dependence, list[Origin]]:
    """The chain of the weight of the first MatMul."""
    node = next(node for node in model.nodes if node.op_type == "MatMul")
    value = node.inputs[1]
    assert value is not None
    chain = Dependence(model, value, lambda proto, feeds: compute(proto, feeds, worker))
    return chain, list(chain.origins(node))


def product(*header: str, **arrays: np.ndarray) -> onnx.ModelProto:
    text = "g (float[3, 128] x) => (float[3, 40] y) { y = MatMul(x, W) }"
    return parsed(text, *header, **(arrays or {"W": normal(128, 40)}))


@pytest.mark.parametrize(("name", "options", "wanted"), FORMS, ids=lambda value: str(value)[:60])
def test_every_form(
    name: str, options: dict[str, Any], wanted: list[tuple[str, int]], worker: Worker,
    tmp_path: Path,
) -> None:  # fmt: skip
    step = build(find_pass(name), {"min_size": 0, **options}, name)
    model = apply(product(), tmp_path, step).model
    chain, origins = read(model, worker)
    assert chain.constant
    assert chain.array.shape == (128, 40)
    found = [(o.reader.op_type if o.reader else "", len(o.numbers)) for o in origins]
    assert sorted(found) == sorted(wanted)
    rng = np.random.default_rng(1)
    for origin in origins:
        np.testing.assert_allclose(origin.linear.expand(origin.numbers), chain.array, atol=1e-6)
        # Other numbers make what the model then computes.
        kind = origin.tensor.dtype.numpy()
        shape = tuple(origin.tensor.shape.numpy())
        others = rng.standard_normal(shape).astype(np.float16).astype(kind)
        changed = model.clone()
        node = next(node for node in changed.nodes if node.op_type == "MatMul")
        stored = next(v for g in changed.scopes for v in g.initializers.values()  # type: ignore[union-attr]
                      if v.name == origin.value.name)  # fmt: skip
        stored.const_value = model.store(others, origin.value.name or "")
        assert node.inputs[1] is not None
        made = Dependence(changed, node.inputs[1], lambda p, f: compute(p, f, worker)).array
        numbers = others.astype(np.float64).ravel()
        np.testing.assert_allclose(origin.linear.expand(numbers), made, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_other_float_types(kind: str, worker: Worker) -> None:
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if kind == "bfloat16" else np.dtype(kind.replace("double", "f8"))
    text = (
        "g (float[3, 128] x) => (float[3, 40] y) "
        "{ t = Transpose(W) w = Cast<to = 1>(t) y = MatMul(x, w) }"
    )
    weight = normal(40, 128).astype(dtype)
    chain, (origin,) = read(Model.from_proto(parsed(text, W=weight)), worker)
    np.testing.assert_array_equal(chain.array, weight.T.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(origin.linear.index, np.arange(5120).reshape(40, 128).T)
    assert (origin.linear.coefficient == 1).all()


OTHERS = {
    "a scale that two weights share": (
        "{ a = Mul(W, s) b = Mul(V, s) h = MatMul(x, a) y = MatMul(h, b) }", ["W"],
    ),
    "a weight of two products": ("{ h = MatMul(x, W) y = MatMul(h, W) }", []),
    "a weight that is squared": ("{ w = Mul(W, W) y = MatMul(x, w) }", []),
    "a weight that is shifted": ("{ w = Add(W, s) y = MatMul(x, w) }", []),
    "one that is looked at elsewhere": (
        "{ w = Mul(W, s) m = ReduceMax(s) h = MatMul(x, w) y = Mul(h, m) }", ["W"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_not_its_own_or_not_linear_is_left_out(case: str, worker: Worker) -> None:
    body, wanted = OTHERS[case]
    arrays = {"W": normal(40, 40), "V": normal(40, 40, seed=1), "s": normal(40, seed=2)}
    model = parsed(
        f"g (float[3, 40] x) => (float[3, 40] y) {body}",
        **{name: array for name, array in arrays.items() if f"{name}" in body},
    )
    chain, origins = read(Model.from_proto(model), worker)
    assert chain.constant
    assert [origin.value.name for origin in origins] == wanted


def test_an_operand_that_the_caller_may_override_is_not_constant(worker: Worker) -> None:
    text = "g (float[3, 8] x, float[8, 8] W) => (float[3, 8] y) { y = MatMul(x, W) }"
    assert not read(Model.from_proto(parsed(text, W=normal(8, 8))), worker)[0].constant
    old = '<ir_version: 3, opset_import: ["": 9]>'  # here every initializer is an input
    assert read(Model.from_proto(parsed(text, old, W=normal(8, 8))), worker)[0].constant
