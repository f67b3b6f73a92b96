"""Figures of inspect on packed models against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshrink.cli import main
from onnxshrink.errors import ModelError, SidecarError
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.forms import packed
from onnxshrink.graph.inspect.packs import inspect_pack
from onnxshrink.kernels import entropy
from onnxshrink.kernels.filters import Filter

PLAIN = Path(__file__).parents[3] / "models" / "vision_cnn" / "model.onnx"


def _save(path, arrays):
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("Identity", ["first"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [output], tensors)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.fixture
def small(tmp_path):
    """Four tensors whose entropies are known: 2 bits, the same again, 0 bits, and random bytes."""
    rng = np.random.default_rng(0)
    quarters = rng.permutation(np.repeat(np.array([-3, 0, 5, 9], np.int8), 5000)).reshape(50, 400)
    _save(
        tmp_path / "plain.onnx",
        {
            "first": rng.standard_normal((100, 30)).astype(np.float32),
            "quarters": quarters,
            "again": quarters,
            "noise": rng.integers(0, 256, 5000).astype(np.uint8),
        },
    )
    packed.save(Model.load(tmp_path / "plain.onnx"), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_every_tensor_has_its_figures(small):
    found = inspect_pack(small)
    tensors = {tensor.name: tensor for tensor in found.tensors}
    quarters, again, noise = (tensors[name] for name in ("quarters", "again", "noise"))
    assert (quarters.dtype, quarters.shape, quarters.parameters) == ("INT8", (50, 400), 20_000)
    assert quarters.entropy_bits == pytest.approx(2, rel=1e-12)
    assert 2 <= quarters.bits_per_weight == 8 * quarters.packed / 20_000 < 2.02
    assert quarters.saving == 1 - quarters.packed / 20_000
    assert quarters.filter == "table+2-bit"
    assert (again.same_as, again.packed, again.saving) == ("quarters", 0, 1)
    assert again.entropy_bits == quarters.entropy_bits
    assert (noise.packed, noise.bits_per_weight, noise.saving) == (5000, 8, 0)
    assert 7.9 < noise.entropy_bits < 8
    assert [t.packed for t in found.tensors] == sorted(t.packed for t in found.tensors)[::-1]


def test_the_sums_are_those_of_the_files(small):
    found = inspect_pack(small)
    assert found.file_bytes == packed.stored_bytes(small)
    with packed.open_pack(small) as opened:
        graph = opened.graph()
        chunks = sum(chunk.packed for chunk in opened.header.chunks) - found.graph_packed
    assert found.graph_bytes == len(graph)
    assert found.plain_bytes == len(graph) + 12_000 + 40_000 + 5000
    total = found.to_dict()["total"]
    assert total["packed"] == chunks == sum(tensor.packed for tensor in found.tensors)
    assert total["parameters"] == 48_000
    assert total["bits_per_weight"] == 8 * chunks / 48_000
    bits = sum(tensor.entropy_bits * tensor.parameters for tensor in found.tensors)
    assert total["entropy_bits"] == pytest.approx(bits / 48_000, rel=1e-12)


def test_the_entropy_of_wide_elements_is_that_of_their_bytes():
    symbols = np.tile(np.array([0, 0, 0x01000200, 0x02000300], np.uint32), 1000)
    # Half are zero: 1 bit each; the others: two bytes of 1 bit each, and two of none.
    assert entropy.ideal_bits(symbols.view(np.uint8), Filter(32, 32)) == 4000 + 2000 * 2
    tabled = Filter(32, 2, table=True)
    assert entropy.ideal_bits(symbols.view(np.uint8), tabled) == pytest.approx(4000 * 1.5)
    assert entropy.ideal_bits(np.zeros(0, np.uint8), Filter(32, 32)) == 0


def test_an_update_needs_no_base_to_be_inspected(small, tmp_path):
    model = onnx.load(tmp_path / "plain.onnx")
    model.graph.initializer[0].raw_data = np.ones(3000, "<f4").tobytes()
    onnx.save(model, tmp_path / "newer.onnx")
    update = tmp_path / "update.onnx"
    packed.save(Model.load(tmp_path / "newer.onnx"), update, base=small)
    found = inspect_pack(update)
    assert found.base is not None
    figures = {tensor.name: (tensor.packed, tensor.entropy_bits) for tensor in found.tensors}
    assert figures["noise"] == (0, None)
    assert figures["quarters"] == (4, None)  # its table is too short to be worth a reference
    assert 0 < figures["first"][0] < 100
    (files, _) = found.tables()
    assert found.base in dict(files.rows)["update of"]


def test_the_command(small, tmp_path, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", *map(str, words)], prog_name="onnxshrink")
        assert not stopped.value.code
        return capsys.readouterr().out

    out = run(small)
    assert "| quarters | int8 | 50 x 400 | 20.0 kB |" in out
    assert "| same as quarters | 100.0% |" in out
    data = json.loads(run(small, "--json"))
    assert data["file_bytes"] == packed.stored_bytes(small)
    assert {tensor["name"] for tensor in data["tensors"]} == {"first", "quarters", "again", "noise"}
    assert all(math.isfinite(tensor["entropy_bits"]) for tensor in data["tensors"])
    both = run(PLAIN, small)
    assert "| Conv |" in both
    assert "| quarters | int8 |" in both
    assert [each["name"] for each in json.loads(run(PLAIN, small, "--json"))] == [
        str(PLAIN), str(small),
    ]  # fmt: skip


def test_long_tables_are_summed_up(small):
    _, table = inspect_pack(small).tables(rows=2)
    assert [row[0] for row in table.rows] == ["first", "quarters", "2 more", "total"]


def test_what_cannot_be_inspected(small, tmp_path):
    with pytest.raises(ModelError, match="is not a packed model"):
        inspect_pack(tmp_path / "plain.onnx")
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(SidecarError, match="what runtimes see of it"):
        inspect_pack(small)


def test_a_pair_of_version_1():
    pair = PLAIN.parents[2] / "tests" / "golden" / "pair" / "model.onnx"
    found = inspect_pack(pair)
    assert found.file_bytes == 960
    assert found.graph_bytes == found.graph_packed == pair.stat().st_size
    files = dict(found.tables()[0].rows)
    assert files["of which in"] == packed.pack_path(pair).name
