"""Tensors are held to their shapes before anything trusts them, and copied piece by piece."""

import io
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxshrink.errors import ModelError
from onnxshrink.graph.file import tensors


@pytest.mark.parametrize(
    ("kind", "dims", "size"),
    [
        (TensorProto.FLOAT, [3, 5], 60), (TensorProto.INT4, [5], 3), (TensorProto.BOOL, [], 1),
        (TensorProto.COMPLEX128, [2], 32), (TensorProto.FLOAT, [0, 9], 0),
    ],
)  # fmt: skip
def test_bytes_that_a_shape_asks_for(kind: int, dims: list[int], size: int) -> None:
    assert tensors.payload_bytes(TensorProto(data_type=kind, dims=dims), "m") == size


@pytest.mark.parametrize(
    ("kind", "dims", "said"),
    [
        (TensorProto.FLOAT, [-1], "negative dimension"),
        (TensorProto.FLOAT, [2**31, 2**32], "overflow"),
        (999, [1], "unknown type 999"),
    ],
)
def test_shapes_that_cannot_be(kind: int, dims: list[int], said: str) -> None:
    with pytest.raises(ModelError, match=f"^m: .*tensor 't'.*{said}|^m: .*{said}.*"):
        tensors.payload_bytes(TensorProto(name="t", data_type=kind, dims=dims), "m")


@pytest.mark.parametrize(
    "kind",
    [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64,
     TensorProto.INT8, TensorProto.UINT4, TensorProto.COMPLEX64, TensorProto.BFLOAT16],
)  # fmt: skip
@pytest.mark.parametrize("raw", [False, True])
def test_values_of_every_type_are_counted(kind: int, raw: bool) -> None:
    values = [1, 0, 1, 1, 0, 1]
    tensor = helper.make_tensor("t", kind, [2, 3], values)
    if raw:
        array = numpy_helper.to_array(tensor)
        tensor = ir.to_proto(ir.tensor(array, dtype=ir.DataType(kind), name="t"))
    tensors.check_inline(tensor, "m")
    tensor.dims[0] = 3
    with pytest.raises(ModelError, match=r"tensor 't' has \d+ \w+, but its shape \[3, 3\] asks"):
        tensors.check_inline(tensor, "m")


def test_texts_are_counted_and_files_refused() -> None:
    text = helper.make_tensor("t", TensorProto.STRING, [2], [b"a", b"b"])
    tensors.check_inline(text, "m")
    text.string_data.append(b"c")
    with pytest.raises(ModelError, match="has 3 texts, but its shape"):
        tensors.check_inline(text, "m")
    tensors.point_at(text, "m.data", 0, 2)
    with pytest.raises(ModelError, match="lies in a file"):
        tensors.check_inline(text, "m")


@pytest.mark.parametrize("location", ["", "/etc/passwd", "../up", "a/../../b", "C:\\x", "a\0b"])
def test_data_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is outside the model's folder"):
        tensors.file_bytes(tmp_path / "m.onnx", location)


def test_a_part_of_a_file_is_copied_without_holding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_COPY_BYTES", 7)
    array = np.arange(40, dtype=np.int16)
    (tmp_path / "d").write_bytes(b"xyz" + array.tobytes() + b"more")
    outside = ir.ExternalTensor(
        "d", 3, 80, ir.DataType.INT16, shape=ir.Shape([40]), name="t", base_dir=tmp_path
    )
    file = io.BytesIO()
    tensors.write(outside, file)
    assert file.getvalue() == array.tobytes()
    proto = onnx.TensorProto(name="t", data_type=TensorProto.INT16, dims=[40])
    tensors.point_at(proto, "d", 3, 80)
    tensors.inline(proto, tmp_path / "d")
    np.testing.assert_array_equal(numpy_helper.to_array(proto), array)
    (tmp_path / "d").write_bytes(b"short")
    with pytest.raises(ModelError, match="was cut short"):
        tensors.write(outside, io.BytesIO())


def test_tensors_that_were_put_aside_come_back() -> None:
    spill, arrays = tensors.Spill(), [np.arange(5), np.ones((2, 3), np.float32)]
    put = [spill.put(ir.tensor(array), f"t{i}") for i, array in enumerate(arrays)]
    for array, tensor in zip(arrays, put, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
        tensors.release(tensor)
