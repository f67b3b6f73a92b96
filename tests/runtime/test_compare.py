import json
import math

import numpy as np
import pytest

from onnxshrink.errors import DataError, ModelError, RecipeError
from onnxshrink.runtime.compare import compare
from onnxshrink.runtime.session import SessionOptions

FEEDS = [{"x": np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)}, {"x": np.ones((1, 2), np.float32)}]
A = "(float[N, 2] x) => (float[N, 2] y, float[N, 2] z) { y = Neg(x) z = Identity(x) }"
B = """(float[N, 2] x) => (float[N, 2] z, float[N, 2] y) <float[2] f = {1, 1.1}> {
    n = Neg(x) y = Mul(n, f) z = Identity(x)
}"""


def test_figures_over_all_feeds_by_name(worker, onnx_file):
    a, b = onnx_file(A, "a.onnx"), onnx_file(B, "b.onnx")
    result = compare(a, b, FEEDS, options_b=SessionOptions(threads=2), worker=worker)
    x = np.concatenate([feed["x"] for feed in FEEDS]).astype(np.float64)
    expected = np.linalg.norm(x * [0, 0.1]) / np.linalg.norm(x)
    y, z = result.outputs
    assert (y.name, z.name) == ("y", "z")
    assert y.relative_error == result.relative_error == pytest.approx(expected, rel=1e-5)
    assert y.max_abs == pytest.approx(0.4, rel=1e-5)
    assert y.sqnr_db == pytest.approx(-20 * math.log10(expected), rel=1e-5)
    assert z.relative_error == 0
    assert y.top1 == result.top1 == 1  # row three ties in the reference
    assert result.missed == []
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["feeds"] == 2
    assert report["options_a"]["threads"] == 1
    assert report["options_b"]["threads"] == 2
    assert report["outputs"][1]["sqnr_db"] is None


def test_thresholds_that_are_missed(worker, onnx_file):
    paths = onnx_file(A, "a.onnx"), onnx_file(B, "b.onnx")
    flipped = onnx_file(A.replace("Neg(x)", "Identity(x)"), "c.onnx")

    def missed(b=paths[1], **thresholds):
        return compare(paths[0], b, FEEDS, worker=worker, **thresholds).missed

    assert missed(max_error=0.2, atol=0.41, min_agreement=1.0) == []
    assert missed(rtol=0.11) == []
    assert missed(max_error=0.08) == ["output 'y': relative error of [:, 1] 0.1 is above 0.08"]
    assert missed(atol=0.15) == [
        "output 'y': 2 of 6 values differ by more than 0.15 + 0 * |reference|"
    ]
    assert missed(flipped, min_agreement=0.5) == ["output 'y': top-1 agreement 0.3333 is below 0.5"]


def test_agreement_needs_classes(worker, onnx_file):
    path = onnx_file("(float[N, 1] x) => (float[N, 1] y) { y = Neg(x) }")
    feeds = [{"x": np.ones((3, 1), np.float32)}]
    assert compare(path, path, feeds, worker=worker).top1 is None
    (line,) = compare(path, path, feeds, min_agreement=0.9, worker=worker).missed
    assert "no output has classes" in line


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("(float[N, 2] x) => (float[N, 2] y) { y = Neg(x) }", "b.onnx has no output z"),
        (A.replace("(float[N, 2] y,", "(float[N, 2] w, float[N, 2] y,").replace(
            "{", "{ w = Abs(x)"), "a.onnx has no output w"),
        (A.replace("x)", "u)"), "b.onnx has no input x"),
        (A.replace("float", "double"), r"input 'x' is tensor\(float\).* tensor\(double\)"),
    ],
)  # fmt: skip
def test_signatures_that_differ_are_a_model_error(worker, onnx_file, other, message):
    with pytest.raises(ModelError, match=f"cannot be compared: .*{message}"):
        compare(onnx_file(A, "a.onnx"), onnx_file(other, "b.onnx"), FEEDS, worker=worker)


def test_outputs_may_change_their_type(worker, onnx_file):
    half = """(float[N, 2] x) => (float16[N, 2] y, float[N, 2] z) {
        n = Neg(x) y = Cast <to = 10> (n) z = Identity(x)
    }"""
    result = compare(onnx_file(A, "a.onnx"), onnx_file(half, "b.onnx"), FEEDS, worker=worker)
    assert result.relative_error == 0


def test_bad_requests(onnx_file):
    path = onnx_file(A)
    with pytest.raises(DataError, match="no inputs"):
        compare(path, path, [])
    with pytest.raises(RecipeError, match="not installed"):
        compare(path, path, FEEDS, options_b=SessionOptions(provider="NoProvider"))


NOISY = """(float[N, 2] x) => (float[N, 2] y, float[N, 2] z) {
    r = RandomNormalLike(x) y = Add(x, r) z = Neg(x)
}"""


def test_random_numbers_are_the_same_in_both_models(worker, onnx_file):
    a = onnx_file(NOISY, "a.onnx")
    b = onnx_file(NOISY.replace("r =", "short =").replace("r)", "short)"), "b.onnx")
    found = compare(a, b, FEEDS, max_error=0.0, atol=0.0, worker=worker)
    assert (found.missed, found.random) == ([], {})
    assert found.a == str(a)


def test_where_no_seed_helps_distributions_are_compared(worker, onnx_file, monkeypatch):
    """Reversing all rows changes values, and no distribution."""
    monkeypatch.setattr("onnxshrink.runtime.compare.differing", lambda *runs: {"y": 0.1})
    feeds = [{"x": np.arange(20, dtype=np.float32).reshape(10, 2)}]
    a = onnx_file("(float[N, 2] x) => (float[N, 2] y) { n = RandomUniformLike(x) z = Mul(n, n) "
                  "i = Identity(x) y = Identity(i) }", "a.onnx")  # fmt: skip
    b = onnx_file("(float[N, 2] x) => (float[N, 2] y) <int64[1] f = {-1}, int64[1] e = {-99}, "
                  "int64[1] k = {0}> { n = RandomUniformLike(x) y = Slice(x, f, e, k, f) }",
                  "b.onnx")  # fmt: skip
    found = compare(a, b, feeds, max_error=0.0, worker=worker)
    assert found.outputs[0].relative_error == 0
    assert found.missed == []
    assert found.to_dict()["random"] == {"y": 0.1}
