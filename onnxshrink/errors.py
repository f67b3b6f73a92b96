"""Every error that onnxshrink raises on purpose. Anything else is a bug and keeps its traceback.

Each message names the file, the tensor or the option, and the way out. The command line turns an
error into one line on stderr and its ``exit_code``.
"""


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
    """A packed sidecar is damaged, hostile, or belongs to another model."""


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
