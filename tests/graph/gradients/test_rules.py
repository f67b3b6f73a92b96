"""Every rule against central differences of what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from gradient_cases import CASES, Array, Case

from onnxshrink.errors import UnsupportedModel
from onnxshrink.graph import operators
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.gradients import differentiate
from onnxshrink.graph.gradients.rules import RULES, STOPS
from onnxshrink.runtime.session import open_session, run_session

#: Differences of fourth order with step h err by about h^4 / 30 times the fifth derivative, and by
#: 1.5 u f / h where results are f large and rounded to u. With f up to 50 and derivatives about 1:
#: float64, h = 1e-3: 3e-14 and 1e-11; float32, h = 0.02: 5e-9 and 2e-4. Some operators of float64
#: have parameters in float32.
_STEP = {np.float64: 1e-3, np.float32: 0.02}
_ERROR = {np.float64: 1e-6, np.float32: 5e-4}
_FOURTH_ORDER = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))


def gradients(case: Case, dtype: type, seed: Array) -> list[dict[str, Array]]:
    """What our graph makes of one seed where sizes are known, and where they are open."""
    wanted = [name for name, array in case.arrays.items() if array.dtype == np.float64]
    both = [prefix + name for prefix in ("", "open.") for name in wanted]
    made = differentiate(Model.from_proto(case.model(dtype, twice=True)), ["y", "open.y"], both)
    assert made.stops == ()
    assert list(made.gradients) == both
    session = open_session(made.model.to_proto().SerializeToString())
    feeds = {port: seed for port in made.seeds.values()}
    for name, array in case.feeds(dtype).items():
        feeds |= {name: array, f"open.{name}": array}
    taken = {port.name for port in session.get_inputs()}
    answers = run_session(session, {name: feeds[name] for name in feeds if name in taken})
    found = dict(zip((port.name for port in session.get_outputs()), answers, strict=True))
    return [
        {name: found[made.gradients[prefix + name]] for name in wanted} for prefix in ("", "open.")
    ]


def differences(case: Case, dtype: type) -> tuple[Array, dict[str, Array]]:
    """A seed, and what differences of results make of it."""
    session = open_session(case.model(dtype).SerializeToString())
    taken = {port.name for port in session.get_inputs()}
    feeds = {name: array for name, array in case.feeds(dtype).items() if name in taken}
    (y,) = run_session(session, feeds)
    if dtype is np.float64 and np.array_equal(y, y.astype(np.float32)):
        raise UnsupportedModel("computes in float32")
    seed = np.random.default_rng(1).uniform(0.5, 1.5, y.shape).astype(dtype)

    def total(name: str, at: int, step: float) -> float:
        moved = feeds[name].copy()
        moved.reshape(-1)[at] += step
        (result,) = session.run(None, {**feeds, name: moved})
        return float(np.sum(np.multiply(result, seed, dtype=np.float64)))

    found = {}
    for name, array in feeds.items():
        if case.arrays[name].dtype == np.float64:
            step = _STEP[dtype]
            slopes = [
                sum(weight * total(name, at, turn * step) for turn, weight in _FOURTH_ORDER) / step
                for at in range(array.size)
            ]
            found[name] = np.reshape(slopes, array.shape)
    return seed, found


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_gradients_are_the_slopes_of_what_is_computed(case: Case) -> None:
    for dtype in (np.float64, np.float32)[case.single :]:
        try:
            seed, slopes = differences(case, dtype)
            made = gradients(case, dtype, seed)
        except UnsupportedModel:
            assert dtype is np.float64, "ONNX Runtime computes neither"
            continue
        for found in made:
            for name, slope in slopes.items():
                assert found[name].dtype == dtype
                size = max(1.0, float(np.abs(slope).max()))
                np.testing.assert_allclose(found[name], slope, rtol=0, atol=_ERROR[dtype] * size)
        return


def test_every_operator_has_a_rule_or_a_definition_or_a_reason() -> None:
    """What makes floating-point numbers of others is differentiated, or we say why not."""
    untold = set()
    for schema in onnx.defs.get_all_schemas():
        key, kind = (schema.domain, schema.name), "tensor(float)"
        takes = any(kind in port.types for port in schema.inputs)
        makes = any(kind in port.types for port in schema.outputs)
        row = operators.TABLE.get(key)
        known = key in RULES or schema.name in STOPS or schema.has_function
        known |= isinstance(row, operators.Random) and row.like  # of another's shape alone
        if not (known or schema.domain or schema.has_context_dependent_function):
            untold |= {schema.name} if takes and makes else set()
    assert untold == set()


def test_every_rule_is_tried() -> None:
    tried = {kind for case in CASES for kind in case.kinds}
    assert {kind for _, kind in set(RULES) - tried} == {"QuantizeLinear"}  # below: it has no slope


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_rounding_lets_gradients_through(domain: str) -> None:
    """To x where it is in reach, to the scale q - x / s there and the last code beyond."""
    line = f"q = {domain}QuantizeLinear(x, s, z) y = {domain}DequantizeLinear(q, s, z)"
    x, s, z = np.array([-9.0, -0.33, 0.41, 8.0]), np.asarray(0.05), np.asarray(3, np.int8)
    case, dy = Case(line, {"x": x, "s": s, "z": z}), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    found, _ = gradients(case, np.float32, dy)
    steps = np.clip(np.rint(x / s) + 3, -128, 127) - 3
    inside = np.array([False, True, True, False])
    np.testing.assert_array_equal(found["x"], np.where(inside, dy, 0))
    slope = np.sum(dy * np.where(inside, steps - x / s, steps))
    np.testing.assert_allclose(found["s"], slope, rtol=1e-5)
