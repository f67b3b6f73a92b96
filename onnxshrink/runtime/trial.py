"""A model whose weights can be exchanged from run to run, without loading it again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxshrink.runtime.session import SessionOptions

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.runtime.worker import Worker

_EXACT = SessionOptions(accuracy_level=0)


class Trial:
    """Runs a model with other weights in the place of its own.

    The worker holds one model at a time: do not use it for another until done with this.

    Args:
        model: The model; it is left as it is.
        names: Constants that are to be exchanged.
        worker: Where to run.

    Attributes:
        refused: Constants that cannot be exchanged, and why.

    Raises:
        ModelError: The model does not load.
    """

    def __init__(self, model: Model, names: Iterable[str], worker: Worker):
        from onnxshrink.graph.analysis.instrument import instrument

        self._worker = worker
        self._folder = tempfile.TemporaryDirectory(prefix="onnxshrink-")
        path = Path(self._folder.name, "trial.onnx")
        self.refused = instrument(model, path, free=names).refused
        try:
            worker.open(path, _EXACT)
        except BaseException:
            self._folder.cleanup()
            raise

    def run(
        self,
        feeds: Sequence[Mapping[str, np.ndarray]],
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> list[list[np.ndarray]]:
        """The outputs for each feed, with these constants exchanged.

        Raises:
            DataError: A feed or a weight does not fit.
            ModelError: The model does not run.
        """
        self._worker.hold(weights or {})
        return [self._worker.step(feed)[0] for feed in feeds]

    def close(self) -> None:
        """Let go of the model."""
        self._worker.release()
        self._folder.cleanup()
