"""Packed and coded models in onnxruntime-node, onnxruntime-web and a browser: Python's numbers.

`tests/readers/js/install` installs the two from npm; a browser is Debian's `chromium`. Tests of
what is not installed are skipped. Nothing here uses the network but this machine's own address.
"""

import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from browser import needs_browser, value_when_there
from onnx import numpy_helper

from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import coded, packed
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.pipeline import run
from onnxshrink.runtime.session import open_session, run_session

HERE = Path(__file__).parent
JS = HERE / "readers" / "js"
READER = HERE.parent / "onnxshrink" / "readers" / "onnxshrink_pack.mjs"
MODELS = HERE.parent / "models"
PATIENCE = 120  # seconds

pytestmark = pytest.mark.e2e


def _needs(runtime):
    missing = not (JS / "node_modules" / runtime).is_dir()
    return pytest.mark.skipif(
        missing or shutil.which("node") is None,
        reason=f"node or {runtime} is not installed: tests/readers/js/install",
    )


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Names, the folder with the jobs in jobs.json, and what ONNX Runtime in Python answers."""
    folder = tmp_path_factory.mktemp("jobs")
    found, expected = {}, {}

    def add(name, plain, base=None, form=packed):
        small = folder / f"{name}.onnx"
        if form is coded:
            coded.save(Model.load(plain), small)
        else:
            packed.save(Model.load(plain), small, base=base and folder / base)
        feeds = _feeds(plain)
        expected[name] = run_session(open_session(plain), feeds)
        job = {
            "model": small.name,
            "feeds": {
                key: {"type": str(value.dtype), "dims": value.shape, "data": value.ravel().tolist()}
                for key, value in feeds.items()
            },
        }
        packs = {"packed": form is packed} | ({"base": base} if base else {})
        found[name] = job | packs
        # The same runtime on the plain model must give these very bits.
        shutil.copyfile(plain, folder / f"plain-{name}.onnx")
        found[f"plain {name}"] = {"model": f"plain-{name}.onnx", "feeds": job["feeds"]}

    for name in ("vision_cnn", "recommender"):
        add(name, MODELS / name / "model.onnx")
    for dtype, block in (("int8", 0), ("int4", 32)):
        step = QuantizeWeights(dtype=dtype, block_size=block)
        result = run([step], Model.load(MODELS / "vision_cnn" / "model.onnx"))
        result.model.save(folder / f"quantized-{dtype}.onnx")
        add(dtype, folder / f"quantized-{dtype}.onnx")
    add("coded", _coarse(MODELS / "vision_cnn" / "model.onnx", folder), form=coded)
    pair = HERE / "golden" / "pair"  # of version 1
    for file in pair.iterdir():
        shutil.copyfile(file, folder / file.name)
    packed.unpack(pair / "model.onnx", folder / "of-pair.onnx")
    x = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    expected["pair"] = run_session(open_session(folder / "of-pair.onnx"), {"x": x})
    feeds = {"x": {"type": "float32", "dims": x.shape, "data": x.ravel().tolist()}}
    pack = packed.pack_path(pair / "model.onnx").name
    found["pair"] = {"model": "model.onnx", "pack": pack, "feeds": feeds}
    found["plain pair"] = {"model": "of-pair.onnx", "feeds": feeds}
    add("update", _changed(MODELS / "vision_cnn" / "model.onnx", folder), "vision_cnn.onnx")
    (folder / "jobs.json").write_text(json.dumps(list(found.values())), encoding="ascii")
    return list(found), folder, expected


def _feeds(model):
    """Four real inputs of a model of `models/`, by the names of its inputs."""
    names = [value.name for value in onnx.load(model).graph.input]
    for name in ("vision_cnn", "recommender"):
        data = np.load(MODELS / name / "calibration.npz")
        if set(names) <= set(data.files):
            return {key: data[key][:4] for key in names}
    raise AssertionError(names)


def _changed(model, folder):
    proto = onnx.load(model)
    tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[:3] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, folder / "changed.onnx")
    return folder / "changed.onnx"


def _coarse(model, folder):
    """Weights of few values, which are worth coding."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 500:
            step = array.std() / 2
            tensor.CopyFrom(numpy_helper.from_array(np.rint(array / step) * step, tensor.name))
    onnx.save(proto, folder / "coarse.onnx")
    return folder / "coarse.onnx"


def _check(jobs, outputs):
    names, _, expected = jobs
    found = dict(zip(names, outputs, strict=True))
    for name, right in expected.items():
        assert found[name] == found[f"plain {name}"]  # bit for bit
        for output, array in zip(found[name].values(), right, strict=True):
            assert tuple(output["dims"]) == array.shape
            scale = float(np.abs(array).max())
            np.testing.assert_allclose(
                np.array(output["data"]).reshape(array.shape), array, rtol=1e-5, atol=1e-6 * scale
            )


@pytest.mark.parametrize(
    "runtime",
    [pytest.param(name, marks=_needs(name)) for name in ("onnxruntime-node", "onnxruntime-web")],
)
def test_in_node(runtime, jobs):
    program = ["node", JS / "node.mjs", runtime, READER, jobs[1] / "jobs.json"]
    done = subprocess.run(
        program, capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    _check(jobs, json.loads(done.stdout))


class _Handler(SimpleHTTPRequestHandler):
    """Serves the page, the runtime, the reader and the jobs."""

    def __init__(self, *args, files, **kwargs):
        self.roots = {
            "ort": JS / "node_modules" / "onnxruntime-web" / "dist",
            "reader": READER.parent,
            "files": files,
        }
        super().__init__(*args, directory=str(JS), **kwargs)

    def translate_path(self, path):
        first, _, rest = path.lstrip("/").partition("/")
        return str(self.roots[first] / rest) if rest else super().translate_path(path)

    def guess_type(self, path):
        return "text/javascript" if str(path).endswith(".mjs") else super().guess_type(path)

    def log_message(self, *args):
        pass


@contextmanager
def _server(files):
    handler = partial(_Handler, files=files)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@_needs("onnxruntime-web")
@needs_browser
def test_in_a_browser(jobs, tmp_path):
    with _server(jobs[1]) as address:
        found = value_when_there(f"{address}/page.html", "window.found", tmp_path)
    assert "error" not in found, found["error"]
    assert "Chrome/" in found["agent"]
    _check(jobs, found["outputs"])
