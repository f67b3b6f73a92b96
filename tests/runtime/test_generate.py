import numpy as np
import pytest
from onnx import parser

from onnxshrink.errors import DataError, UnsupportedModel
from onnxshrink.graph.file.model import Model
from onnxshrink.runtime.generate import generated_inputs

HEADER = '<ir_version: 8, opset_import: ["": 17, "com.example": 1]> g '


def model(text: str) -> Model:
    return Model.from_proto(parser.parse_model(text if text[0] == "<" else HEADER + text))


def generated(text: str, worker, count: int = 20, **options) -> list[dict[str, np.ndarray]]:
    return generated_inputs(model(text), count, 0, worker=worker, **options)


def spread(feeds, name: str = "i") -> tuple[int, int]:
    values = np.concatenate([feed[name].ravel() for feed in feeds])
    return int(values.min()), int(values.max())


def test_floats_are_normal_and_free_dimensions_likely(worker):
    feeds = generated("(float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Neg(x) }", worker, 2)
    assert feeds[0]["x"].shape == (1, 3, 224, 224)
    assert feeds[0]["x"].dtype == np.float32
    assert abs(feeds[0]["x"].mean()) < 0.02
    assert feeds[0]["x"].std() == pytest.approx(1, abs=0.02)
    assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])


def test_same_seed_same_feeds(worker):
    sine = model("(float[N, T] x) => (float[N, T] y) { y = Sin(x) }")
    first, again = (generated_inputs(sine, 2, 5, worker=worker) for _ in range(2))
    other = generated_inputs(sine, 2, 6, worker=worker)
    np.testing.assert_array_equal(first[1]["x"], again[1]["x"])
    assert not np.array_equal(first[1]["x"], other[1]["x"])


TABLE = "<float[7, 2] t = {0,1,2,3,4,5,6,7,8,9,10,11,12,13}, int64[1] a = {1}, int64 three = {3}>"


@pytest.mark.parametrize(
    ("text", "largest"),
    [
        (f"(int64[N, T] i) => (float[N, T, D] y) {TABLE} {{ y = Gather(t, i) }}", 6),
        (f"(int64[N, T] i) => (float[A, B, C] y) {TABLE} {{ y = Gather <axis = -1> (t, i) }}", 1),
        (
            f"(int64[N, T] i) => (float[N, T, D] y) {TABLE}"
            "{ j = Add(i, three) y = Gather(t, j) }",
            3,
        ),
        (
            f"(float[N, T] i) => (float[A, B, C, D] y) {TABLE}"
            "{ j = Cast <to = 7> (i) k = Unsqueeze(j, a) l = Identity(k) y = Gather(t, l) }",
            6,
        ),
        (
            f"(int64[N, T] i) => (float[A, B, C] y) {TABLE}"
            "{ j, k = Split <axis = 1> (i) l = Concat <axis = 0> (k, j) y = Gather(t, l) }",
            6,
        ),
        (
            f"(int64[N, T] i) => (float[N, T, D] y) {TABLE}"
            "{ c = Constant <value_int = 2> () j = Add(i, c) y = Gather(t, j) }",
            4,
        ),
        (
            f"(int64[N, T] i) => (float[N, T, D] y) {TABLE}"
            "{ j = Mul(i, three) y = Gather(t, j) }",
            1,
        ),
        (f"(int64[N, D] i) => (float[N, D] y) {TABLE} {{ y = GatherElements(t, i) }}", 6),
        (
            "(int64[N] i) => (float[N, D] y) <int64 d = {5}, float[2] v = {0, 1}>"
            "{ y = OneHot(i, d, v) }",
            4,
        ),
        (
            "(int64[N, T] i) => (float[N, T, D] y) <int8[5, 1] q = {1,2,3,4,5}, float s = {0.5}>"
            "{ t = DequantizeLinear(q, s) y = Gather(t, i) }",
            4,
        ),
    ],
)
def test_indices_stay_inside_the_tables_they_reach(worker, text, largest):
    assert spread(generated(text, worker, 60)) == (0, largest)


def test_every_column_has_its_own_table(worker):
    text = """(int64[N, 2] i) => (float[N] y)
    <float[3] small = {1,2,3}, float[9] big = {1,2,3,4,5,6,7,8,9},
     int64 zero = {0}, int64 one = {1}> {
        p = Gather <axis = 1> (i, zero) q = Gather <axis = 1> (i, one)
        a = Gather(small, p) b = Gather(big, q) y = Add(a, b)
    }"""
    values = np.concatenate([feed["i"] for feed in generated(text, worker, 80)])
    assert values.max(axis=0).tolist() == [2, 8]


def test_columns_of_a_reshaped_input_are_not_its_own(worker):
    text = """(int64[N, 4] i) => (float[M] y)
    <float[3] small = {1,2,3}, float[9] big = {1,2,3,4,5,6,7,8,9}, int64[2] pairs = {-1, 2},
     int64[K, 2] r, int64 zero = {0}, int64 one = {1}> {
        r = Reshape(i, pairs)
        p = Gather <axis = 1> (r, zero) q = Gather <axis = 1> (r, one)
        a = Gather(small, p) b = Gather(big, q) y = Add(a, b)
    }"""
    values = np.concatenate([feed["i"] for feed in generated(text, worker, 80)])
    assert values.max(axis=0).tolist() == [2, 2, 2, 2]


def test_tables_in_functions_and_subgraphs_are_found(worker):
    function = """<ir_version: 8, opset_import: ["": 17, "f": 1]>
    g (int64[N, T] i) => (float[N, T] y) { y = f.look(i) }
    <domain: "f", opset_import: ["": 17]> look (at) => (entry) {
        t = Constant <value = float[4] {1,2,3,4}> () entry = Gather(t, at)
    }"""
    assert spread(generated(function, worker)) == (0, 3)
    branch = """(int64[N, T] i, bool c) => (float[N, T] y) <float[4] t = {1,2,3,4}> {
        y = If(c) <then_branch = a () => (float[N, T] p) { p = Gather(t, i) },
                   else_branch = b () => (float[N, T] q) { q = Cast <to = 1> (i) }>
    }"""
    assert spread(generated(branch, worker)) == (0, 3)


def test_masks_have_ones_then_zeros(worker):
    text = """(int64[N, T] attention_mask, bool[N, T] padding) => (bool[N, T] y) {
        m = Cast <to = 9> (attention_mask) y = And(m, padding)
    }"""
    for feed in generated(text, worker):
        for mask in (feed["attention_mask"][0], feed["padding"][0].astype(np.int64)):
            assert mask[0] == 1
            assert mask[-1] == 0
            assert (np.diff(mask) <= 0).all()


def test_constants_that_an_input_is_compared_with(worker):
    text = """(int64 rate) => (bool p, bool q) <int64 a = {8000}, int64 b = {16000}> {
        p = Equal(rate, a) q = Equal(rate, b)
    }"""
    values = {int(feed["rate"]) for feed in generated(text, worker)}
    assert values == {8000, 16000}


def test_strings_and_bytes(worker):
    text = """(string[N] s, uint8[N, H, W, 3] image) => (string[N] t, float[A, B, C, D] f) {
        t = Identity(s) f = Cast <to = 1> (image)
    }"""
    feeds = generated(text, worker, 3)
    assert all(isinstance(value, str) for feed in feeds for value in feed["s"])
    assert feeds[0]["image"].shape == (1, 224, 224, 3)
    assert spread(feeds, "image") == (0, 255)


def test_the_same_symbol_has_the_same_size(worker):
    text = "(float[N, T] a, float[T, 4] b) => (float[N, 4] y) { y = MatMul(a, b) }"
    (feed,) = generated(text, worker, 1)
    assert feed["a"].shape[1] == feed["b"].shape[0]


def test_other_sizes_are_tried_until_the_model_takes_them(worker):
    text = """(float[N, T] x) => (float[A, B] y) <int64[2] shape = {-1, 512}> {
        y = Reshape(x, shape)
    }"""
    (feed,) = generated(text, worker, 1)
    assert feed["x"].size % 512 == 0


def test_shapes_decide_and_fix_their_symbols(worker):
    text = (
        "(float[N, T] a, float[N, T, 2] b) => (float[N, T] p, float[N, T, 2] q) {p=Neg(a) q=Neg(b)}"
    )
    (feed,) = generated(text, worker, 1, shapes={"a": (3, 5)})
    assert feed["a"].shape == (3, 5)
    assert feed["b"].shape == (3, 5, 2)
    for shapes, message in (
        ({"c": (3, 5)}, "--shape c: the model has no such input"),
        ({"b": (3, 5, 4)}, "--shape b:3,5,4: the model takes N,T,2"),
        ({"b": (3, 5)}, "--shape b:3,5: the model takes N,T,2"),
    ):
        with pytest.raises(DataError, match=message):
            generated(text, worker, 1, shapes=shapes)


def test_when_nothing_is_taken_the_error_says_what_to_do(worker):
    text = "(float[N, T] x) => (float[A] y) <int64[1] shape = {7}> { y = Reshape(x, shape) }"
    with pytest.raises(DataError, match=r"Reshape.* Give real data, .*--shape x:1,16"):
        generated(text, worker)
    (feed,) = generated(text, worker, 1, shapes={"x": (7, 1)})
    assert feed["x"].shape == (7, 1)


def test_models_that_do_not_load_are_not_the_inputs_fault():
    with pytest.raises(UnsupportedModel, match=r"com\.example:Foo"):
        generated("(float[N] x) => (float[N] y) { y = com.example.Foo(x) }", None)


def test_a_model_without_inputs(worker):
    assert generated("() => (float[1] y) { y = Constant <value_floats = [1.0]> () }", worker) == [
        {}
    ]


def test_a_dimension_of_minus_one_is_free(tmp_path):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y) {y = Neg(x)}'
    )
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    [feed] = generated_inputs(Model.from_proto(model), 1, 0)
    assert feed["x"].shape[1] == 3
    assert feed["x"].shape[0] >= 1
