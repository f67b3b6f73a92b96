"""ONNX Runtime sessions whose every setting is pinned, so that two runs can be compared."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxshrink.errors import DataError, ModelError, RecipeError, UnsupportedModel

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_OPTIMIZATION = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_ERRORS_ONLY = 3

#: Where a model takes one of these, the inputs of another may be of the other: by their names.
HALVES: dict[str, np.dtype[Any]] = {
    "tensor(float16)": np.dtype(np.float16), "tensor(float)": np.dtype(np.float32)
}  # fmt: skip

# Types that ONNX Runtime does not exchange with numpy by itself: its name, ml_dtypes' name, and
# the number of the type in onnx.proto.
_BYTEWISE = {
    "tensor(bfloat16)": ("bfloat16", 16),
    "tensor(float8e4m3fn)": ("float8_e4m3fn", 17),
    "tensor(float8e4m3fnuz)": ("float8_e4m3fnuz", 18),
    "tensor(float8e5m2)": ("float8_e5m2", 19),
    "tensor(float8e5m2fnuz)": ("float8_e5m2fnuz", 20),
}

# What ONNX Runtime says about a valid model that it cannot run, and what that means.
_LACKS = (
    (r"Could not find an implementation for (\S+) node", "no kernel for operator {}"),
    (
        r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op",
        "no custom operator {}; --custom-ops LIB.so loads the library that has it, --check off "
        "writes the result without running it",
    ),
    (r"No Op registered for (\S+) with domain_version of (\d+)", "no operator {} in opset {}"),
    (r"Type '(.+?)' of input parameter .*? of operator \((\w+)\)", "no kernel for {} {}"),
    (
        r"Opset (\d+) is under development.*?till opset (\d+)",
        "no support for opset {} yet; the newest that it knows is {}",
    ),
    (r"Opset (\d+) is under development", "no support for opset {} yet"),
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        "no support for IR version {} yet; the newest that it knows is {}",
    ),
    (r"Unsupported model IR version: (\d+)", "no support for IR version {} yet"),
)
# Of a sidecar that is not there as data, and of a packed model's stub.
_PACKED_SIGNS = ("xternal data", "this model is packed")
_CODE_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE_PREFIX = re.compile(r"^\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])")
_LONGEST_REASON = 400


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Everything about a session that can change its answers or its speed.

    Attributes:
        provider: The execution provider; ONNX Runtime runs on the CPU what it does not take.
        threads: Threads inside one operator; 0 means one for each core.
        optimization: How far ONNX Runtime rewrites the graph when it loads it.
        accuracy_level: ``session.qdq_matmulnbits_accuracy_level``. 0 computes with the dequantized
            weights themselves; ``None`` leaves ONNX Runtime its default, which rounds activations
            to int8 in front of 2, 4 and 8-bit MatMul weights.
        lean: Whether nodes run in the order that lets go of values early: answers stay, and a graph
            of gradients takes half the memory.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 1
    optimization: Literal["disable", "basic", "extended", "all"] = "all"
    accuracy_level: int | None = None
    lean: bool = False

    def describe(self) -> dict[str, object]:
        """The options, ONNX Runtime's version and the CPU, as a report needs them."""
        said = {name: value for name, value in asdict(self).items() if name != "lean"}
        return {**said, "onnxruntime": _version(), **_cpu()}


DEFAULT_OPTIONS = SessionOptions()


@cache
def _version() -> str:
    """ONNX Runtime's version, without the time and memory that importing it takes."""
    for distribution in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    import onnxruntime

    version: str = onnxruntime.__version__
    return version


@cache
def _cpu() -> dict[str, object]:
    """The CPU and the instructions that decide how int8 is computed on it."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        info = ""
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags.update(value.split())
    return {
        "cpu": name,
        "vnni": bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"}),
        "amx": "amx_int8" in flags,
    }


def open_session(
    model: str | os.PathLike[str] | bytes,
    options: SessionOptions = DEFAULT_OPTIONS,
    files: Mapping[str, np.ndarray] | None = None,
    profile: str | None = None,
    label: str = "the model",
    libraries: Sequence[str] = (),
) -> InferenceSession:
    """Load a model into ONNX Runtime.

    Args:
        model: Path of a model file, plain or packed, or a whole model as bytes.
        options: What to pin.
        files: Contents of external data files by name, uint8, in place of files on disk.
        profile: How the name of a file starts, to write a profile of all runs to.
        label: What to call a model of bytes in messages.
        libraries: Shared libraries with custom operators.

    Raises:
        RecipeError: The execution provider is not installed, or a library does not load.
        UnsupportedModel: The installed ONNX Runtime has no kernel for an operator, or does not
            know the model's opset; the message names it.
        ModelError: Any other reason why the model does not load.
    """
    import onnxruntime

    installed = onnxruntime.get_available_providers()
    if options.provider not in installed:
        raise RecipeError(
            f"provider {options.provider} is not installed; installed: {', '.join(installed)}"
        )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, _OPTIMIZATION[options.optimization]
    )
    if options.lean:
        settings.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if options.accuracy_level is not None:
        settings.add_session_config_entry(
            "session.qdq_matmulnbits_accuracy_level", str(options.accuracy_level)
        )
    for library in libraries:
        try:
            settings.register_custom_ops_library(library)
        except Exception as error:  # as below
            reason = " ".join(str(error).split())
            raise RecipeError(f"--custom-ops {library}: does not load: {reason}") from error
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    if files:
        if not hasattr(settings, "add_external_initializers_from_files_in_memory"):
            raise UnsupportedModel(
                f"ONNX Runtime {_version()} takes no weights from memory: use 1.24 or later, or "
                "'onnxshrink unpack' the model first"
            )
        # ONNX Runtime keeps no reference: `files` lives in this frame until the session exists.
        names, buffers = list(files), list(files.values())
        sizes = [buffer.size for buffer in buffers]
        settings.add_external_initializers_from_files_in_memory(names, buffers, sizes)
    source = model if isinstance(model, bytes) else os.fspath(model)
    label = label if isinstance(model, bytes) else os.fspath(model)
    try:
        session = onnxruntime.InferenceSession(source, settings, providers=[options.provider])
    except Exception as error:  # ONNX Runtime's exceptions share no class of their own
        if any(sign in str(error) for sign in _PACKED_SIGNS) and _is_packed(source):
            from onnxshrink.runtime import packed

            return packed.session(label, options, profile=profile)
        raise _refusal(error, label) from error
    if options.provider not in session.get_providers():  # its library did not load: a CPU run
        raise RecipeError(f"provider {options.provider} is installed, but does not start here")
    return session


def _refusal(error: Exception, label: str) -> ModelError:
    for pattern, message in _LACKS:
        if found := re.search(pattern, str(error)):
            return UnsupportedModel(f"{label}: ONNX Runtime has {message.format(*found.groups())}")
    if _out_of_memory(error):
        return ModelError(f"{label}: not enough memory to load it into ONNX Runtime")
    return ModelError(f"{label}: ONNX Runtime does not load it: {_reason(error)}")


def _is_packed(source: str | bytes) -> bool:
    """Whether a model that does not load is packed."""
    from onnxshrink.graph.forms.packed import is_packed

    return isinstance(source, str) and Path(source).is_file() and is_packed(source)


def _out_of_memory(error: Exception) -> bool:
    signs = ("bad_alloc", "Failed to allocate", "Cannot allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def _reason(error: Exception) -> str:
    """What ONNX Runtime has to say, without its codes and the places in its sources."""
    text = _SOURCE_PREFIX.sub("", _CODE_PREFIX.sub("", str(error)))
    return " ".join(text.split())[:_LONGEST_REASON] or type(error).__name__


def as_taken(feed: Mapping[str, np.ndarray], types: Mapping[str, str]) -> dict[str, np.ndarray]:
    """A feed with its floats in the one of two widths in which a model takes them, the rest as is.

    Args:
        feed: Inputs by name.
        types: What the model takes, by ONNX Runtime's names of types.
    """
    return {
        name: array.astype(HALVES[types[name]], copy=False)
        if types.get(name) in HALVES and array.dtype in HALVES.values()
        else array
        for name, array in feed.items()
    }


def run_session(
    session: InferenceSession,
    feed: Mapping[str, np.ndarray],
    label: str = "the model",
    outputs: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Run a session once, and no further than the outputs that are asked for need.

    bfloat16 and float8 arrays (of ``ml_dtypes``) go in and come out as such; float16 and float32
    arrays go in as the model takes them. Outputs that are not tensors become arrays, see
    :func:`as_array`.

    Raises:
        DataError: The feed does not fit the model's inputs.
        ModelError: A node failed on this feed.
    """
    from onnxruntime import RunOptions
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    inputs = session.get_inputs()
    ports = [*inputs, *session.get_outputs()]
    feed = as_taken(feed, {port.name: port.type for port in inputs})
    settings = None
    if outputs is not None:
        settings = RunOptions()
        settings.only_execute_path_to_fetches = True
    try:
        if any(port.type in _BYTEWISE for port in ports):
            feeds = {name: _to_value(array) for name, array in feed.items()}
            return [
                _from_value(value)
                for value in session.run_with_ort_values(outputs, feeds, settings)
            ]
        return [as_array(value) for value in session.run(outputs, dict(feed), settings)]
    except Exception as error:  # see open_session
        if _out_of_memory(error):
            raise ModelError(f"{label}: not enough memory to run it") from error
        in_a_node = "while running" in str(error)
        if isinstance(error, InvalidArgument | ValueError) and not in_a_node:
            raise DataError(f"{label}: the inputs do not fit it: {_reason(error)}") from error
        raise ModelError(f"{label}: ONNX Runtime fails to run it: {_reason(error)}") from error


def as_array(value: Any) -> np.ndarray:
    """Make an array of an output that ONNX Runtime gives as something else.

    A map becomes its values in the order of its sorted keys; a sequence (for instance of maps, as
    ZipMap makes) the stack of its elements, or their concatenation when shapes differ; an absent
    optional an empty array.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, dict):
        return np.asarray([value[key] for key in sorted(value)])
    if isinstance(value, list | tuple):
        arrays = [as_array(element) for element in value]
        if len({array.shape for array in arrays}) > 1:
            return np.concatenate([array.ravel() for array in arrays])
        return np.stack(arrays) if arrays else np.zeros(0, np.float32)
    return np.zeros(0, np.float32) if value is None else np.asarray(value)


def _to_value(array: np.ndarray) -> Any:
    from onnxruntime import OrtValue

    numbers = dict(_BYTEWISE.values())
    if array.dtype.name not in numbers:
        return OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, numbers[array.dtype.name])


def _from_value(value: Any) -> np.ndarray:
    import ml_dtypes

    if value.data_type() not in _BYTEWISE:
        return as_array(value.numpy())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    dtype = np.dtype(getattr(ml_dtypes, _BYTEWISE[value.data_type()][0]))
    return np.frombuffer(data, dtype).reshape(tuple(value.shape()))
