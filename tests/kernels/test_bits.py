"""Packing against ONNX's own, and back."""

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxshrink.kernels.bits import pack, unpack

Codes = npt.NDArray[np.int8 | np.uint8]
TYPES = {
    (4, True): onnx.TensorProto.INT4,
    (4, False): onnx.TensorProto.UINT4,
    (2, True): onnx.TensorProto.INT2,
    (2, False): onnx.TensorProto.UINT2,
}


@st.composite
def codes(draw: st.DrawFn, bits: int, signed: bool) -> Codes:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    return draw(hnp.arrays(np.int8 if signed else np.uint8, shape, elements=st.integers(low, high)))


def _signed(unsigned: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int8]:
    half = 1 << (bits - 1)
    return ((unsigned.astype(np.int8) ^ half) - half).astype(np.int8)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
@given(data=st.data())
def test_there_and_back(bits: int, signed: bool, data: st.DataObject) -> None:
    original = data.draw(codes(bits, signed))
    packed = pack(original, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-original.size * bits // 8),)
    back = unpack(packed, bits, original.size)
    assert back.dtype == np.uint8
    flat = _signed(back, bits) if signed else back
    np.testing.assert_array_equal(flat.reshape(original.shape), original)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
@given(data=st.data())
def test_as_onnx_does_it(bits: int, signed: bool, data: st.DataObject) -> None:
    original = data.draw(codes(bits, signed))
    kind = TYPES[bits, signed]
    theirs = onnx.helper.make_tensor("t", kind, original.shape, original.reshape(-1).tolist())
    raw = ir.from_proto(theirs).tobytes()
    assert pack(original, bits).tobytes() == raw
    mine = onnx.TensorProto(
        data_type=kind, dims=original.shape, raw_data=pack(original, bits).tobytes()
    )
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(mine).astype(np.int8), original.astype(np.int8)
    )
    tensor = ir.PackedTensor(
        pack(original, bits), ir.DataType(kind), shape=ir.Shape(original.shape)
    )
    np.testing.assert_array_equal(tensor.numpy().astype(np.int8), original.astype(np.int8))


def test_the_first_code_is_in_the_low_bits() -> None:
    assert pack(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]
    assert pack(np.array([-1, -8], np.int8), 4).tolist() == [0x8F]
    assert pack(np.array([1, 2, 3, 0, 1], np.uint8), 2).tolist() == [0b00111001, 0b01]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9])
def test_any_width_and_count(bits: int, count: int) -> None:
    symbols = (np.arange(count) * 37 + 1).astype(np.uint8)
    packed = pack(symbols, bits)
    symbols &= (1 << bits) - 1
    whole = sum(int(s) << (bits * i) for i, s in enumerate(symbols))
    assert int.from_bytes(packed.tobytes(), "little") == whole
    assert unpack(packed, bits, count).tolist() == symbols.tolist()
