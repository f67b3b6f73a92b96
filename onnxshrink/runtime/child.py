"""The other end of ``Worker``'s pipes: a process that may crash, hang or run out of memory."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import queue
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from onnxshrink import heap
from onnxshrink.errors import ModelError, ShrinkError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from onnxshrink.graph.forms.packed import Unpacked
    from onnxshrink.kernels.observers import Need, Sums
    from onnxshrink.kernels.pairs import PairNeed, RegressionSums
    from onnxshrink.runtime.profile import OperatorTime
    from onnxshrink.runtime.session import SessionOptions

_LENGTH_BYTES = 8
_WATCHED_BYTES = 64 * 2**20  # values that one run hands out at most; one of them may be larger
_FIRST_OUTPUTS = 8  # so many in a run of the first feed, while their sizes are not known
_NOT_SEEN = "is never reached with these inputs, or always empty"


def send(pipe: IO[bytes], message: object) -> None:
    """Write one message: its length, then its pickle."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one message.

    Raises:
        EOFError: The other end is gone.
    """
    head = pipe.read(_LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    data = pipe.read(length) if len(head) == _LENGTH_BYTES else b""
    if not data or len(data) != length:  # gone, perhaps in the middle of the message
        raise EOFError
    return pickle.loads(data)


class Service:
    """What a worker does when asked: one session at a time; a method for each kind of request.

    Args:
        libraries: Shared libraries with custom operators, for every session.
    """

    def __init__(self, libraries: Sequence[str] = ()) -> None:
        self._libraries = tuple(libraries)
        self._session: InferenceSession | None = None
        self._loaded: Any = None
        self._signature: tuple[dict[str, str], dict[str, str], float] = {}, {}, 0.0
        self.label = ""
        self._before = 0
        self._held: dict[str, np.ndarray] = {}
        self._watched: list[tuple[tuple[str, ...], Need, Sums]] = []
        self._beside: InferenceSession | None = None
        self._pairs: list[tuple[tuple[str, str], PairNeed, RegressionSums]] = []
        self._unfit: dict[int, str] = {}
        self._sizes: dict[Any, int] = {}
        self._stacked: dict[str, int] = {}
        self._seen: set[tuple[int, str]] = set()

    def check(self, path: str) -> None:
        """Hold a model file against the ONNX specification."""
        import onnx.checker

        from onnxshrink.graph.file import contrib, reading

        contrib.declare()
        plain = _unpacked(path) if reading.is_file_packed(Path(path)) else None
        try:
            try:
                onnx.checker.check_model(path if plain is None else str(plain.path))
            except onnx.checker.ValidationError:
                from onnxshrink.graph.file import tensors

                linked = tensors.without_linked_data(Path(path))
                if linked is None:
                    raise
                onnx.checker.check_model(linked)
        except Exception as error:  # it raises its own kind, or protobuf's, or ValueError
            raise ModelError(f"{path}: not valid ONNX: {' '.join(str(error).split())}") from error

    def warm_up(self) -> None:
        """Load and run the smallest model, so that no other pays for what all need."""
        from onnx import parser

        from onnxshrink.runtime.session import open_session

        model = parser.parse_model(
            '<ir_version: 7, opset_import: ["": 13]> g (float[1] x) => (float[1] y) { y = Neg(x) }'
        )
        open_session(model.SerializeToString()).run(None, {"x": np.zeros(1, np.float32)})

    def open(
        self, path: str, options: SessionOptions
    ) -> tuple[dict[str, str], dict[str, str], float]:
        """Load a model, unless it is the one that is loaded.

        Returns:
            The types of its inputs and outputs, and the seconds that loading took.
        """
        from onnxshrink.runtime.session import open_session

        stat = os.stat(path) if os.path.exists(path) else None
        loaded = (path, options, stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino))
        if self._session is not None and self._loaded == loaded:
            return self._signature
        self.close()
        self._loaded = loaded
        _start_over()
        self.label, self._before = path, memory()[0]
        start = time.perf_counter()
        session = self._session = open_session(path, options, libraries=self._libraries)
        seconds = time.perf_counter() - start
        inputs, outputs = (
            {port.name: port.type for port in ports}
            for ports in (session.get_inputs(), session.get_outputs())
        )
        self._signature = inputs, outputs, seconds
        return self._signature

    def run(self, feed: dict[str, np.ndarray]) -> tuple[list[np.ndarray], float]:
        """Run the loaded model once; return its outputs and the seconds that it took.

        An output that the model lists twice is given once, as in its signature.
        """
        from onnxshrink.runtime.session import run_session

        assert self._session is not None
        start = time.perf_counter()
        outputs = run_session(self._session, {**feed, **self._held}, self.label)
        seconds = time.perf_counter() - start
        names = (port.name for port in self._session.get_outputs())
        return list(dict(zip(names, outputs, strict=True)).values()), seconds

    def hold(self, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays here, in place of others, that join the feed of every run of the model."""
        self._held = arrays

    def watch(self, wanted: list[tuple[tuple[str, ...], Need]], stacked: dict[str, int]) -> None:
        """Begin to add up statistics of outputs (or inputs) of the loaded model."""
        self._watched = [(outputs, need, need.statistic.start()) for outputs, need in wanted]
        self._stacked, self._sizes, self._unfit, self._seen = stacked, {}, {}, set()

    def _unstacked(self, output: str, array: np.ndarray) -> np.ndarray:
        """An array of a body's value, with the iterations counted as rows of it."""
        loops = self._stacked.get(output, 0)
        if not loops or array.ndim < loops + 2 or not array.size:  # one axis beside: its channels
            return array
        return array.reshape(-1, *array.shape[loops + 1 :])

    def observe(self, feed: dict[str, np.ndarray], number: int) -> None:
        """Run the loaded model on one feed, and add up what is watched, a few outputs at a time.

        Activations stay here: only :meth:`collect` hands anything out.
        """
        from onnxshrink.runtime.session import run_session

        assert self._session is not None
        self._add(feed, number)
        watched = (output for outputs, _, _ in self._watched for output in outputs)
        for part in self._slices(list(dict.fromkeys(name for name in watched if name not in feed))):
            arrays = run_session(self._session, feed, self.label, part)
            for output, array in zip(part, arrays, strict=True):
                self._sizes[output] = max(self._sizes.get(output, 0), array.nbytes)
            self._add(dict(zip(part, arrays, strict=True)), number)

    def watch_pairs(
        self, path: str, options: SessionOptions,
        wanted: list[tuple[tuple[str, str], PairNeed]], stacked: dict[str, int],
    ) -> None:  # fmt: skip
        """Load a second model beside the first, and begin to add up statistics of both.

        Args:
            path: The second model.
            options: How to run it.
            wanted: The outputs (or inputs) of the first and of the second model for each.
            stacked: Outputs whose leading axes number iterations, and how many of them.
        """
        from onnxshrink.runtime.session import open_session

        self._beside = open_session(path, options, libraries=self._libraries)
        self._pairs = [(outputs, need, need.statistic.start()) for outputs, need in wanted]
        self._stacked, self._sizes, self._unfit, self._seen = stacked, {}, {}, set()

    def observe_pairs(self, feed: dict[str, np.ndarray], number: int) -> None:
        """Run both models on one feed, and add up what is watched, a few outputs at a time."""
        assert self._session is not None
        assert self._beside is not None
        for part in self._slices(list(dict.fromkeys(outputs for outputs, _, _ in self._pairs))):
            own = self._values(self._session, feed, [x for x, _ in part])
            other = self._values(self._beside, feed, [y for _, y in part])
            for x, y in part:
                self._sizes[x, y] = own[x].nbytes + other[y].nbytes
            for place, ((x, y), need, sums) in enumerate(self._pairs):
                if (x, y) in part and place not in self._unfit:
                    self._seen |= {(place, x), (place, y)} if own[x].size else set()
                    try:
                        mine, its = self._unstacked(x, own[x]), self._unstacked(y, other[y])
                        sums.add(need.statistic, mine, its, number)
                    except ValueError as error:
                        self._unfit[place] = str(error)

    def _values(
        self, session: InferenceSession, feed: dict[str, np.ndarray], names: list[str]
    ) -> dict[str, np.ndarray]:
        """Some outputs of a model on a feed, or what the feed holds."""
        from onnxshrink.runtime.session import run_session

        made = list(dict.fromkeys(name for name in names if name not in feed))
        arrays = run_session(session, feed, self.label, made) if made else []
        return {**feed, **dict(zip(made, arrays, strict=True))}

    def _slices(self, outputs: list[Any]) -> Iterator[list[Any]]:
        part: list[Any] = []
        room = _WATCHED_BYTES
        for output in outputs:
            need = self._sizes.get(output, _WATCHED_BYTES // _FIRST_OUTPUTS)
            if part and need > room:
                yield part
                part, room = [], _WATCHED_BYTES
            part.append(output)
            room -= need
        if part:
            yield part

    def _add(self, values: dict[str, np.ndarray], number: int) -> None:
        from onnxshrink.kernels.rows import joined

        for place, (outputs, need, sums) in enumerate(self._watched):
            if place in self._unfit:
                continue
            found = {
                name: self._unstacked(name, values[name]) for name in outputs if name in values
            }
            arrays = [array for array in found.values() if array.size]
            self._seen |= {(place, name) for name, array in found.items() if array.size}
            try:
                for array in joined(getattr(need.statistic, "layout", None), arrays):
                    sums.add(need.statistic, array, number)  # type: ignore[arg-type]
            except ValueError as error:
                self._unfit[place] = str(error)

    def collect(self, folder: str) -> dict[int, str]:
        """Write the sums of every statistic to a file of its own, numbered in the order asked.

        Returns:
            Those that could not be collected, and why.
        """
        for place, (outputs, _, sums) in enumerate([*self._watched, *self._pairs]):
            if not self._seen.issuperset((place, name) for name in outputs):
                self._unfit.setdefault(place, _NOT_SEEN)
            if place not in self._unfit:
                np.savez(os.path.join(folder, f"{place}.npz"), **vars(sums))
        self._watched, self._pairs = [], []
        return self._unfit

    def time(self, feed: dict[str, np.ndarray], at_least: float) -> float:
        """Run the loaded model on one feed for a while; return the seconds of one run."""
        count, seconds = 0, 0.0
        while seconds < at_least or not count:
            count, seconds = count + 1, seconds + self.run(feed)[1]
        return seconds / count

    def profile(self, feed: dict[str, np.ndarray], at_least: float) -> list[OperatorTime]:
        """Run the loaded model for a while, in a session of its own that is profiled."""
        from onnxshrink.runtime.profile import by_operator
        from onnxshrink.runtime.session import open_session, run_session

        path, options, _ = self._loaded
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(
                path, options, profile=os.path.join(folder, "profile"), libraries=self._libraries
            )
            start, runs = time.perf_counter(), 0
            while runs < 2 or time.perf_counter() - start < at_least:
                run_session(session, feed, path)
                runs += 1
            return by_operator(Path(session.end_profiling()))

    def memory(self) -> tuple[int, int]:
        """Resident bytes now, and at their peak, beyond those before the model was loaded."""
        return tuple(value - self._before for value in memory())  # type: ignore[return-value]

    def close(self) -> None:
        """Let go of the session, and of what was held and watched for it."""
        self._session, self._held, self._watched = None, {}, []
        self._beside, self._pairs = None, []
        heap.give_back()


def _unpacked(path: str) -> Unpacked:
    from onnxshrink.graph.forms import packed  # all of graph/: most models do without

    return packed.load(path)


def memory() -> tuple[int, int]:
    """Resident bytes of this process, and their peak since the last reset.

    On Linux the peak comes from ``/proc``: ``ru_maxrss`` survives exec, so a child would report
    its parent's peak as its own.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status.read()))
        return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    return info.rss, getattr(info, "peak_wset", info.rss)


def _start_over() -> None:
    """Give what the last model used back to the system, and forget its peak (Linux)."""
    gc.collect()
    gc.freeze()  # what is left are modules: to look through them takes longer than a small model
    heap.give_back()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
        refs.write("5")


def _limit_memory(limit: int) -> None:
    # Windows has no such limit, and macOS may not take this one.
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        if most != resource.RLIM_INFINITY:
            limit = min(limit, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _listen(requests: IO[bytes], waiting: queue.SimpleQueue[tuple[str, tuple[Any, ...]]]) -> None:
    """Take requests in, and end the process with the parent's: even in the middle of a run."""
    code = 0
    try:
        while True:
            waiting.put(receive(requests))
    except EOFError:
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def main() -> None:
    """Answer requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends this process
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever native code prints or reads must not get between the messages.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if len(sys.argv) > 1:
        _limit_memory(int(sys.argv[1]))
    waiting: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    import onnx.checker  # noqa: F401  (both while the parent is still at work)
    import onnxruntime  # noqa: F401

    service = Service(sys.argv[2:])
    while True:
        method, arguments = waiting.get()
        try:
            reply: tuple[str, object] = ("value", getattr(service, method)(*arguments))
        except ShrinkError as error:
            reply = ("refusal", error)
        except MemoryError:
            reply = ("refusal", ModelError(f"{service.label}: not enough memory"))
        except Exception:
            reply = ("bug", traceback.format_exc())
        send(replies, reply)


if __name__ == "__main__":
    main()
