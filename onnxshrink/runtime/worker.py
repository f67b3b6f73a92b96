"""ONNX Runtime in a process of its own: a model that crashes it is an error, not the end.

The child is spoken to over its stdin and stdout, and not by ``multiprocessing``, which would
import the user's script again in the child.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxshrink.errors import DataError, ModelError, ShrinkError, UnsupportedModel
from onnxshrink.runtime.child import receive, send
from onnxshrink.runtime.decoding import steps
from onnxshrink.runtime.session import DEFAULT_OPTIONS, SessionOptions
from onnxshrink.runtime.shelf import Shelf

if TYPE_CHECKING:
    from onnxshrink.kernels.observers import Need
    from onnxshrink.kernels.pairs import PairNeed
    from onnxshrink.runtime.profile import OperatorTime

PathLike = str | os.PathLike[str]
#: Seconds. An endless Loop ends after it; nothing that anybody waits for takes as long.
DEFAULT_TIMEOUT = 1800.0
_RESERVED = 16 * 2**30
#: How often a call's time is looked at: so often in what it may take, and after so many seconds.
_LOOKS, _LONGEST_LOOK = 20, 1.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of running a model on some feeds.

    Attributes:
        output_names: Names of the outputs, in the model's order.
        outputs: For each feed, the outputs in that order.
        load_seconds: Time to load the model.
        seconds: For each feed, the time of its run.
        peak_bytes: By how much loading and running the model raised the child's resident memory
            at its peak. ``bench`` measures it better: without what other models left behind.
    """

    output_names: tuple[str, ...]
    outputs: list[list[np.ndarray]]
    load_seconds: float
    seconds: list[float]
    peak_bytes: int


class Signature(NamedTuple):
    """What a loaded model takes and gives: its inputs' and outputs' types by name, in order."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    load_seconds: float


class Worker:
    """A child process that loads and runs models.

    It starts at the first request (or at :meth:`start`), and again after a crash. Use it as a
    context manager, or :meth:`close` it. Checks and whole runs of several threads wait for each
    other; the steps of a session are for one thread at a time.

    Args:
        timeout: Seconds that one load, one check or one inference may take; None: for ever.
        memory_limit: Bytes of address space for the child, on systems that have such a limit; None:
            all memory of the machine, and 16 GiB for what is reserved and not used.
        custom_ops: Shared libraries with custom operators: their code runs in the child.
    """

    def __init__(
        self, *, timeout: float | None = DEFAULT_TIMEOUT, memory_limit: int | None = None,
        custom_ops: Sequence[PathLike] = (),
    ):  # fmt: skip
        self._timeout = timeout
        self._libraries = tuple(map(os.path.abspath, custom_ops))
        self._busy = threading.RLock()
        self._memory_limit = memory_limit
        self._model = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._watchdog: _Watchdog | None = None
        self._errors: Any = None
        self._end: weakref.finalize[..., Worker] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def another(self) -> Worker:
        """A worker beside this one, under the same limits: the one way to get it in a run."""
        return type(self)(
            timeout=self._timeout, memory_limit=self._memory_limit, custom_ops=self._libraries
        )

    def start(self) -> None:
        """Start the child, without waiting: it imports ONNX Runtime while the caller works on."""
        if self._child is not None:
            return
        limit = _machine_memory() if self._memory_limit is None else self._memory_limit
        # The child finds modules where this process does.
        search = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the child)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "onnxshrink.runtime.child", str(limit), *self._libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": search, "PYTHONSAFEPATH": "1"},
        )
        self._watchdog = _Watchdog(self._child)
        self._end = weakref.finalize(self, _end, self._child, self._errors, self._watchdog)

    def close(self) -> None:
        """End the child. A later request starts another."""
        if self._end is not None:
            self._end()
        self._child = self._errors = self._end = self._watchdog = None

    def check(self, path: PathLike) -> None:
        """Hold a model file against the ONNX specification, with ``onnx.checker``.

        Raises:
            ModelError: The checker's complaint, or that it crashed.
        """
        path = os.path.abspath(path)
        with self._busy:
            self._call(f"checking {path}", "check", path)

    def run(
        self,
        path: PathLike,
        feeds: Iterable[Mapping[str, np.ndarray]],
        options: SessionOptions = DEFAULT_OPTIONS,
    ) -> Run:
        """Load a model and run it on every feed.

        Raises:
            RecipeError: The execution provider is not installed.
            UnsupportedModel: ONNX Runtime lacks something that the model needs.
            ModelError: The model does not load or run, crashed, or took longer than the timeout.
            DataError: A feed does not fit the model.
        """
        with self._busy, Shelf() as shelf:
            signature = self.open(path, options)
            try:
                asked = steps.answered(self, tuple(signature.outputs), list(feeds))
                runs = [(shelf.keep(outputs), seconds) for outputs, seconds in asked]
                peak = self.memory()[1]
            finally:
                self.release()
        return Run(
            output_names=tuple(signature.outputs),
            outputs=[outputs for outputs, _ in runs],
            load_seconds=signature.load_seconds,
            seconds=[seconds for _, seconds in runs],
            peak_bytes=peak,
        )

    def refusals(
        self, path: PathLike, feeds: Iterable[Mapping[str, np.ndarray]]
    ) -> list[str | None]:
        """Try feeds until the model takes one; why it refused each before, then None.

        Raises:
            ModelError: The model does not load at all.
        """
        answers: list[str | None] = []
        with self._busy:
            self.open(path)
            for feed in feeds:
                try:
                    self.step(feed)
                    return [*answers, None]  # the model stays loaded: it will be run next
                except UnsupportedModel:
                    raise
                except (DataError, ModelError) as error:
                    answers.append(str(error))
                    if self._child is None:  # it crashed
                        self.open(path)
            self.release()
        return answers

    # ---- one session, step by step; ``run`` and ``bench`` are made of these

    def open(self, path: PathLike, options: SessionOptions = DEFAULT_OPTIONS) -> Signature:
        """Load a model in place of the last."""
        self._model = os.path.abspath(path)  # the child may have another working directory
        return Signature(*self._call(f"loading {self._model}", "open", self._model, options))

    def warm_up(self) -> None:
        """Make the child ready: the next load takes the time and memory of its model alone."""
        self._call("warming up", "warm_up")

    def step(self, feed: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], float]:
        """Run the loaded model once; its outputs and the seconds it took."""
        doing = f"running {self._model}"
        answer: tuple[list[np.ndarray], float] = self._call(doing, "run", dict(feed))
        return answer

    def hold(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays in the child that join the feed of every later run of the loaded model."""
        self._call("holding arrays", "hold", dict(arrays))

    def watch(
        self,
        wanted: Sequence[tuple[tuple[str, ...], Need]],
        stacked: Mapping[str, int] | None = None,
    ) -> None:
        """Begin to add up statistics.

        Args:
            wanted: For each, which outputs of the loaded model, or inputs, have it.
            stacked: How many leading axes of an output number iterations; they count as rows.
        """
        self._call("starting to observe", "watch", list(wanted), dict(stacked or {}))

    def observe(self, feed: Mapping[str, np.ndarray], number: int) -> None:
        """Run the loaded model on a feed; its watched values are added up in the child."""
        self._call(f"running {self._model}", "observe", dict(feed), number)

    def watch_pairs(
        self, path: PathLike, wanted: Sequence[tuple[tuple[str, str], PairNeed]],
        options: SessionOptions = DEFAULT_OPTIONS, stacked: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Load a second model beside the first, and begin to add up statistics of both.

        Args:
            path: The second model.
            wanted: For each statistic, which output or input of the first and of the second model.
            options: How to run the second model.
            stacked: See :meth:`watch`; of both models.
        """
        path, loops = os.path.abspath(path), dict(stacked or {})
        self._call(f"loading {path}", "watch_pairs", path, options, list(wanted), loops)

    def observe_pairs(self, feed: Mapping[str, np.ndarray], number: int) -> None:
        """Run both models on a feed; what is watched of them is added up in the child."""
        self._call(f"running {self._model}", "observe_pairs", dict(feed), number)

    def collect(self, folder: PathLike) -> dict[int, str]:
        """Have the statistics written: number i of those watched to ``folder/i.npz``.

        Returns:
            The numbers of those that do not fit what they were asked of, and why.
        """
        folder = os.path.abspath(folder)
        unfit: dict[int, str] = self._call("collecting statistics", "collect", folder)
        return unfit

    def time(self, feed: Mapping[str, np.ndarray], at_least: float) -> float:
        """Mean seconds of a run, over as many runs of one feed as take ``at_least`` seconds."""
        seconds: float = self._call(f"running {self._model}", "time", dict(feed), at_least)
        return seconds

    def profile(self, feed: Mapping[str, np.ndarray], at_least: float) -> list[OperatorTime]:
        """What each operator takes of a run of the loaded model, over ``at_least`` seconds."""
        doing = f"profiling {self._model}"
        found: list[OperatorTime] = self._call(doing, "profile", dict(feed), at_least)
        return found

    def memory(self) -> tuple[int, int]:
        """Resident bytes now, and at their peak, beyond those before the model was loaded."""
        answer: tuple[int, int] = self._call("measuring memory", "memory")
        return answer

    def release(self) -> None:
        """Let go of the loaded model; the child stays."""
        if self._child is not None:
            self._call("closing a session", "close")

    # ---- the pipe

    def _call(self, doing: str, method: str, *arguments: object) -> Any:
        self.start()
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        watchdog = self._watchdog
        assert watchdog is not None
        watchdog.begin(self._timeout)
        try:
            send(child.stdin, (method, arguments))
            kind, answer = receive(child.stdout)
        except (EOFError, OSError) as error:
            reason = self._post_mortem(child, watchdog.expired)
            self.close()
            raise ModelError(f"ONNX Runtime {reason} while {doing}") from error
        except BaseException:  # Ctrl-C in the middle of a message: nobody can go on from there
            self.close()
            raise
        finally:
            watchdog.end()
        if kind == "bug":
            raise RuntimeError(f"in the worker, while {doing}:\n{answer}")
        if kind == "refusal":
            raise answer
        return answer

    def _post_mortem(self, child: subprocess.Popen[bytes], expired: bool) -> str:
        if expired:
            return f"took longer than {self._timeout:g} s"
        code = child.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        said = f", saying {last[0].strip()!r}," if last else ""
        if code >= 0:
            return f"ended with exit code {code}{said}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        why = "; is there enough memory?" if name == "SIGKILL" else ""
        return f"crashed (signal {-code}, {name}{why}){said}"


@contextlib.contextmanager
def blamed(path: PathLike, worker: Worker | None = None) -> Iterator[None]:
    """Walk through the graph of a model that nobody has checked, in this block.

    Args:
        path: The model file.
        worker: Where to check it, if it comes to that; without one, in a process of its own.

    Raises:
        ModelError: The walk failed because the model is invalid, or does not load; says why.
    """
    try:
        yield
    except ShrinkError:
        raise
    except Exception:
        with contextlib.ExitStack() as stack:
            worker = worker or stack.enter_context(Worker())
            worker.check(path)
            worker.open(path)
        raise  # the model is fine: a bug of ours, which keeps its traceback


def _machine_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total + psutil.swap_memory().total) + _RESERVED


class _Watchdog:
    """Kills a child that answers too late: one thread for all calls, which looks now and then.

    Args:
        child: The process.

    Attributes:
        expired: Whether it had to.
    """

    def __init__(self, child: subprocess.Popen[bytes]):
        self._child = child
        self._deadline = math.inf  # of the call at hand, by time.monotonic
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.expired = False

    def begin(self, timeout: float | None) -> None:
        """A call begins that may take so many seconds; None: for ever."""
        if timeout is None:
            return
        self._deadline = time.monotonic() + timeout
        if self._thread is None:
            interval = min(timeout / _LOOKS, _LONGEST_LOOK)
            self._thread = threading.Thread(target=self._watch, args=[interval], daemon=True)
            self._thread.start()

    def end(self) -> None:
        """The call is over."""
        self._deadline = math.inf

    def close(self) -> None:
        """The child is gone."""
        self._closed.set()

    def _watch(self, interval: float) -> None:
        while not self._closed.wait(interval):
            if time.monotonic() > self._deadline:
                self.expired = True
                self._child.kill()
                return


def _end(child: subprocess.Popen[bytes], errors: Any, watchdog: _Watchdog) -> None:
    """Kill the child, wait for it, and close what belonged to it."""
    watchdog.close()
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout, errors):
        assert pipe is not None
        with contextlib.suppress(OSError):  # unsent bytes in a broken pipe
            pipe.close()
