"""What tests in several folders share: one process that runs models."""

from collections.abc import Iterator

import pytest

from onnxshrink.runtime.worker import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker(timeout=60) as shared:
        yield shared
