from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import parser

from onnxshrink.runtime.worker import Worker

HEADER = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3, "com.example": 1]> g '


def parsed(text: str) -> onnx.ModelProto:
    return parser.parse_model(text if text.startswith("<") else HEADER + text)


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker(timeout=60) as shared:
        yield shared


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model, given as ONNX text or proto, to a file."""

    def write(model: str | onnx.ModelProto, name: str = "model.onnx") -> Path:
        proto = parsed(model) if isinstance(model, str) else model
        path = tmp_path / name
        path.write_bytes(proto.SerializeToString())
        return path

    return write
