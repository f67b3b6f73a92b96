from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import parser

HEADER = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3, "com.example": 1]> g '


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model, given as ONNX text or proto, to a file."""

    def write(model: str | onnx.ModelProto, name: str = "model.onnx") -> Path:
        if isinstance(model, str):
            model = parser.parse_model(model if model.startswith("<") else HEADER + model)
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write
