"""Where recipes are evaluated: in this process, in several, or on a cluster."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from onnxshrink.errors import RecipeError

_PATIENCE = 10.0  # seconds for a scheduler to answer
_RETRIES = 2  # of an evaluation whose process died


@dataclass
class Workplace:
    """An executor, and how many evaluations go on in it at a time.

    Attributes:
        width: How many.
        executor: Where they run; None: one after the other in this process.
        renew: Makes another one when all processes of the first are gone; None where that cannot
            be done.
        alive: Whether it can still be reached.
    """

    width: int
    executor: Executor | None = None
    renew: Callable[[], Executor] | None = None
    alive: Callable[[], bool] = lambda: True

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start something, in a new executor where the last one broke.

        Raises:
            BrokenExecutor: It broke, and there is no other.
        """
        if self.executor is None:
            raise TypeError("nothing is submitted to this process")
        try:
            return self.executor.submit(function, *arguments)
        except (BrokenExecutor, OSError) as error:
            # A pool that is about to break has closed the pipes that a new process needs.
            if self.renew is None:
                raise BrokenExecutor(str(error)) from error
            self.executor.shutdown(wait=False)
            self.executor = self.renew()
            return self.executor.submit(function, *arguments)

    def close(self) -> None:
        """Let what runs end, and start nothing more."""
        if self.executor is not None:
            self.executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def place(jobs: int, scheduler: str | None, given: Executor | None) -> Iterator[Workplace]:
    """Where to evaluate.

    Args:
        jobs: How many processes, or evaluations at a time in ``given``.
        scheduler: The address of a Dask scheduler, ``tcp://host:8786``.
        given: An executor; it is not shut down.

    Raises:
        RecipeError: The scheduler does not answer in time, has no workers, or Dask is missing.
    """
    if given is not None:
        yield Workplace(max(jobs, 1), given)
    elif scheduler is not None:
        with _cluster(scheduler) as found:
            yield found
    elif jobs > 1:
        found = Workplace(jobs, _pool(jobs), lambda: _pool(jobs))
        try:
            yield found
        finally:
            found.close()
    else:
        yield Workplace(1)


def _pool(jobs: int) -> Executor:
    import multiprocessing

    # A forked copy would share what this process talks to its own runtime over.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C is for this process: it tells the others to end.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(jobs, context, initializer=signal.signal, initargs=ignore)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Workplace]:
    try:
        import distributed
    except ImportError as error:
        raise RecipeError(
            "--scheduler needs dask and distributed: pip install 'onnxshrink[search]'"
        ) from error
    make: Any = distributed.Client
    try:
        client: Any = make(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise RecipeError(
            f"--scheduler {address}: no Dask scheduler answers there within {_PATIENCE:g} s"
        ) from error
    with client:
        width = sum(client.nthreads().values())
        if not width:
            raise RecipeError(f"--scheduler {address}: has no workers; start some: dask worker")
        executor = client.get_executor(pure=False, retries=_RETRIES)
        yield Workplace(width, executor, alive=lambda: bool(client.status == "running"))
