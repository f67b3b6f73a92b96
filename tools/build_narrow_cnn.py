#!/usr/bin/env python3
"""Train the narrow sister of `models/vision_cnn`: the same nodes and names, a quarter of the work.

    python tools/build_narrow_cnn.py

Tests run the examples of the documentation on it. It needs what `build_vision_cnn.py` needs.
"""

from __future__ import annotations

from pathlib import Path

from build_vision_cnn import fit, read_split
from model_files import export_torch

WIDTHS = (12, 32, 48, 72, 96)
OUT = Path(__file__).parent.parent / "tests" / "narrow_cnn.onnx"


def main() -> None:
    """Train and export."""
    images, labels = read_split("train")
    export_torch(fit(images, labels, WIDTHS), {"image": images[:2]}, "scores", OUT)


if __name__ == "__main__":
    main()
