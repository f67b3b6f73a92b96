"""What is in a model file whose weights may be coded: the weights, and what coding them saves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxshrink.graph.forms import coded_read
from onnxshrink.graph.inspect.findings import Inspection
from onnxshrink.graph.inspect.statistics import inspect_model
from onnxshrink.kernels import coded_plan
from onnxshrink.report import size


def inspect_file(
    path: str | os.PathLike[str], shapes: Mapping[str, Sequence[int]] | None = None
) -> Inspection:
    """Look into a model file; coded weights are shown as what they are rebuilt to.

    Args:
        path: The .onnx.
        shapes: As for :func:`inspect_model`.

    Raises:
        ModelError: Not an ONNX model, or a coded tensor is damaged.
        DataError: ``shapes`` do not fit the model's inputs.
    """
    model, names = coded_read.load(path)
    found = inspect_model(model, shapes=shapes)
    if not names:
        return found
    elements = nbytes = ideal = 0.0
    for name in names:
        tensor = model.ir.graph.initializers[name].const_value
        assert tensor is not None
        elements, nbytes = elements + tensor.size, nbytes + tensor.nbytes
        _, counts = np.unique(tensor.numpy().reshape(-1), return_counts=True)
        ideal += coded_plan.entropy_bytes(counts)
    plain = model.nbytes()
    stored = found.file_bytes - (plain - nbytes)
    note = (
        f"{len(names)} tensors of {size(int(nbytes))} are coded in {size(int(stored))}, tables and "
        f"nodes included: {8 * stored / elements:.3f} bits a weight, {8 * ideal / elements:.3f} "
        f"of entropy; the file has {size(found.file_bytes)}, the plain model is shown"
    )
    return replace(found, file_bytes=plain, notes=(note, *found.notes))
