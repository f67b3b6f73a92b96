"""What tests in several folders share: one process that runs models."""

import contextlib
from collections.abc import Iterator

import pytest

from onnxshrink.runtime.worker import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker(timeout=60) as shared:
        yield shared


@pytest.fixture
def one_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and the API use that process too, instead of starting one each."""
    monkeypatch.setattr("onnxshrink.runtime.worker.Worker", lambda: contextlib.nullcontext(worker))
