"""What a run says of itself at the end."""

import gzip
import json
from pathlib import Path

import brotli
import numpy as np
import pytest

from onnxshrink import files
from onnxshrink.files import brotli_bytes, gzip_bytes
from onnxshrink.report import Report, Step


def report(**more: object) -> Report:
    step = Step("clean", bytes_before=2000, bytes_after=1000)
    return Report(result="out.onnx", steps=[step], bytes_before=2000, bytes_after=1000, **more)  # type: ignore[arg-type]


def test_the_headline_has_sizes_as_they_are_sent() -> None:
    line = report(bytes_gzip=900, bytes_brotli=800).headline()
    assert "2.0 kB -> 1.0 kB, 2.00x smaller, 900 B after gzip, 800 B after brotli" in line


def test_what_comes_next_is_said() -> None:
    found = report(runtime="1.17").next_step()
    assert found == "out.onnx opens as any ONNX model, in ONNX Runtime 1.17 or newer"
    assert "needs a reader of packs: onnxshrink.session()" in report(packed=True).next_step()


def test_ten_of_those_that_were_kept_are_listed() -> None:
    moved = {f"w{number}": "int8" for number in range(13)}
    lines = report(moved=moved).kept()
    assert lines[:2] == ["kept at int8: w0", "kept at int8: w1"]
    assert lines[10:] == ["and 3 more are kept: --report FILE has all of them"]
    assert len(report(moved=dict(list(moved.items())[:10])).kept()) == 10


def test_json_says_which_form_it_has() -> None:
    found = json.loads(report().to_json())
    assert (found["schema"], found["ratio"], found["changed"]) == (2, 2.0, True)


def test_sizes_after_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.arange(5000, dtype=np.int32).tobytes()
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data[:100])
    expected = sum(len(brotli.compress(each, quality=9)) for each in (data, data[:100]))
    assert brotli_bytes([tmp_path / "a", tmp_path / "b"]) == expected
    assert 0 < (gzip_bytes([tmp_path / "a"]) or 0) < len(data)
    monkeypatch.setattr(files, "_LARGE", len(data) - 1)
    assert brotli_bytes([tmp_path / "a"]) == len(brotli.compress(data, quality=6))
    assert gzip_bytes([tmp_path / "a"]) == len(gzip.compress(data, 1, mtime=0))
