"""Every error that onnxshrink raises on purpose. Anything else is a bug and keeps its traceback.

Each message names the file, the tensor or the option, and the way out. The command line turns an
error into one line on stderr and its ``exit_code``; a bug, into what :func:`internal` says of it.
"""

import traceback

#: The exit code of a command that hits a bug of ours (sysexits.h: EX_SOFTWARE).
INTERNAL = 70


class ShrinkError(Exception):
    """The root of the tree: catch this to catch everything that onnxshrink refuses."""

    exit_code = 2


class RecipeError(ShrinkError):
    """An unknown pass or option, or a value outside what the option takes."""


class ModelError(ShrinkError):
    """The file is not a usable ONNX model: damaged, invalid, or it points outside its folder."""

    exit_code = 3


class UnsupportedModel(ModelError):
    """A valid model that this runtime cannot run, for instance for lack of a custom kernel."""


class DataError(ShrinkError):
    """Calibration or comparison inputs do not fit the model."""

    exit_code = 3


class InputsMissing(DataError):
    """A pass measures on real inputs, and got none or too few."""

    exit_code = 2


class SidecarError(ModelError):
    """A packed model is damaged or hostile, or its sidecar belongs to another model."""


class OutputError(ShrinkError):
    """The result cannot be written where it was asked for."""


class BudgetMissed(ShrinkError):
    """The result exists, but misses the size, error or agreement that was asked for.

    Attributes:
        report: What was done, as the run that missed would have returned it.
    """

    exit_code = 1

    def __init__(self, message: str, report: object = None):
        super().__init__(message)
        self.report = report


def internal(error: BaseException) -> str:
    """One line on a bug of ours: what it is, and where it was raised."""
    last = str(error).strip().splitlines()[-1:]
    said = ": ".join([type(error).__name__, *last])
    frames = traceback.extract_tb(error.__traceback__)
    package = [frame for frame in frames if "onnxshrink" in frame.filename] or frames
    where = "".join(f" ({frame.name}, line {frame.lineno})" for frame in package[-1:])
    return f"internal error, please report it: {said}{where}"
