"""What type checkers know of the API. `tools/check` has mypy read this file; nothing runs it.

A line that is wrong is marked as such, and mypy complains of a mark where nothing is wrong.
"""

from typing_extensions import assert_type

import onnxshrink
from onnxshrink.report import Report


def names_options_and_answers() -> None:
    step = onnxshrink.quantize_static("a", "b", onnxshrink.Options(), method="mse")
    assert_type(step, Report)
    assert_type(onnxshrink.compare("a", "b").missed, list[str])
    onnxshrink.quantize_static("a", "b", metod="percentile")  # type: ignore[call-arg]
    onnxshrink.quantize_static("a", "b", method="percentle")  # type: ignore[arg-type]
    onnxshrink.shrnk("a", "b")  # type: ignore[attr-defined]
    onnxshrink.shrink("a", "b", max_sise=3)  # type: ignore[call-arg]
