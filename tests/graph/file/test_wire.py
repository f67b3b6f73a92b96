"""Models are read without their weights, and written without holding them."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxshrink.graph.file import wire


def model(*sizes: int, numbers: int = 0) -> onnx.ModelProto:
    """Initializers and constants of so many bytes, and a node with a list of numbers."""
    arrays = [np.arange(size, dtype=np.uint8) for size in sizes]
    nodes = [
        helper.make_node("Constant", [], [f"c{i}"], value=numpy_helper.from_array(a))
        for i, a in enumerate(arrays)
    ]
    values = [(-1) ** i * 3**i % 2**40 for i in range(numbers)]
    if values:
        nodes.append(helper.make_node("Constant", [], ["n"], value_ints=values))
    stored = [numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(arrays)]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], stored))


def tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    made = [a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")]
    return [*proto.graph.initializer, *made]


@pytest.mark.parametrize("size", [wire.STREAMED_BYTES - 1, wire.STREAMED_BYTES, 3**10])
def test_large_tensors_stay_in_the_file_and_their_places_are_right(
    size: int, tmp_path: Path
) -> None:
    proto, path = model(7, size), tmp_path / "m.onnx"
    # As files have it that were external once: a mark behind the bytes that says they are inside.
    proto.graph.initializer[1].data_location = onnx.TensorProto.DEFAULT
    path.write_bytes(proto.SerializeToString())
    data, found = path.read_bytes(), wire.read(str(path))
    for was, tensor in zip(tensors(proto), tensors(found), strict=True):
        if len(was.raw_data) < wire.STREAMED_BYTES:
            assert tensor == was
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(place["offset"]), int(place["length"])
        assert data[offset : offset + length] == was.raw_data
        assert place["location"] == wire.INSIDE
        assert tensor.data_location == onnx.TensorProto.EXTERNAL
        assert (tensor.name, tensor.dims) == (was.name, was.dims)
        assert not tensor.raw_data


@pytest.mark.parametrize("broken", [b"\x0f\x00", b"\x3a\xff\x01", b"\x80" * 12, b"\x3a"])
def test_what_is_no_message_is_refused(broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"wire type|behind its message|number"):
        wire.read(str(path))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 20000), max_size=3), st.sampled_from([0, 63, 64, 200]))
def test_what_is_written_is_the_model_and_its_size_is_known(sizes: list[int], numbers: int) -> None:
    proto = model(*sizes, numbers=numbers)
    expected = onnx.ModelProto.FromString(proto.SerializeToString())
    payloads: list[tuple[int, object] | None] = []
    for number, tensor in enumerate(proto.graph.initializer):
        data = tensor.raw_data
        if number % 2:
            payloads.append(None)
            continue
        tensor.ClearField("raw_data")
        payloads.append((len(data), lambda file, data=data: file.write(data)))
    layout = wire.FileLayout(proto, payloads)  # type: ignore[arg-type]
    file = io.BytesIO()
    layout.write(file)
    assert len(file.getvalue()) == layout.nbytes
    assert onnx.ModelProto.FromString(file.getvalue()) == expected
