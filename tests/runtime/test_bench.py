import itertools
import json
import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxshrink.errors import DataError, ModelError, RecipeError
from onnxshrink.runtime.bench import bench, median_interval, stored_bytes

FEEDS = [{"x": np.ones((1, 256), np.float32)}]


def chain(length: int) -> str:
    names = ["x", *(f"h{i}" for i in range(1, length)), "y"]
    nodes = " ".join(f"{b} = MatMul({a}, w)" for a, b in itertools.pairwise(names))
    return f"(float[N, 256] x, float[256, 256] w) => (float[N, 256] y) {{ {nodes} }}"


def with_weight(text: str, size: int = 256) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    weight = np.zeros((size, size), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    del model.graph.input[1]
    return model


def test_a_model_of_much_more_work_takes_longer(onnx_file):
    paths = [onnx_file(with_weight(chain(n)), f"{n}.onnx") for n in (2, 120)]
    result = bench(paths, FEEDS, rounds=6)
    short, long = result.models
    assert (short.ratio, short.ratio_low, short.ratio_high) == (1, 1, 1)
    assert long.ratio > 1.5
    assert long.ratio_low <= long.ratio <= long.ratio_high
    assert 0 < short.seconds < long.seconds
    assert short.load_seconds > 0
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["models"][1]["path"] == str(paths[1])
    assert report["models"][0]["file_bytes"] == paths[0].stat().st_size
    assert report["rounds"] == 6
    assert report["options"]["threads"] == 1


@pytest.mark.parametrize(("within", "rounds"), [(1e6, 6), (0.0, 48)])
def test_timing_goes_on_until_the_interval_is_narrow(within, rounds, onnx_file):
    paths = [onnx_file(with_weight(chain(n)), f"{n}.onnx") for n in (1, 2)]
    assert bench(paths, FEEDS, rounds=6, within=within).rounds == rounds


def test_memory_is_the_models_own(onnx_file):
    text = "(float[N, 4096] x, float[4096, 4096] w) => (float[N, 4096] y) { y = MatMul(x, w) }"
    small = onnx_file("(float[N, 4096] x) => (float[N, 4096] y) { y = Neg(x) }", "small.onnx")
    large = onnx_file(with_weight(text, 4096), "large.onnx")
    result = bench([small, large], [{"x": np.ones((1, 4096), np.float32)}], rounds=6)
    tiny, big = result.models
    assert tiny.peak_bytes < 8 * 2**20
    assert 60 * 2**20 < big.steady_bytes <= big.peak_bytes < 400 * 2**20


def test_external_data_count(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(with_weight(chain(1)), path, save_as_external_data=True, location="w.bin")
    assert stored_bytes(path) == path.stat().st_size + 256 * 256 * 4


def test_bad_requests(onnx_file):
    path = onnx_file("(float[N, 256] x) => (float[N, 256] y) { y = Neg(x) }")
    with pytest.raises(RecipeError, match="5 rounds are too few"):
        bench([path], FEEDS, rounds=5)
    with pytest.raises(DataError, match="no inputs"):
        bench([path], [])
    with pytest.raises(DataError, match="do not fit"):
        bench([path], [{"z": np.ones(1)}])
    with pytest.raises(ModelError, match=r"absent\.onnx"):
        bench([path.with_name("absent.onnx")], FEEDS)


@pytest.mark.parametrize(
    ("count", "left_out"), [(6, 0), (8, 0), (9, 1), (25, 7), (100, 39), (3, 0)]
)
def test_the_interval_of_a_median_leaves_out_what_tables_say(count, left_out):
    assert median_interval(range(count)) == (left_out, count - 1 - left_out)


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(2000, 25))
    hits = [low <= math.log(2) <= high for low, high in map(median_interval, samples.tolist())]
    assert np.mean(hits) == pytest.approx(0.957, abs=0.015)
