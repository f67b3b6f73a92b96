"""Functions that users name as ``file.py:function``: metrics, readers of inputs, graph surgery.

Their code may raise, end the program, print, and change the directory. Whatever it does, a run
goes on or stops with one error: :func:`user_code` is around every line of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from onnxshrink.errors import DataError, ShrinkError
from onnxshrink.options import nearest, nearest_file

T = TypeVar("T")


@contextlib.contextmanager
def user_code(where: str) -> Iterator[None]:
    """Run code of the user in this block: its prints go to stderr, the directory stays ours.

    Args:
        where: The function, for the message.

    Raises:
        DataError: It raised, or wanted to end the program.
    """
    folder = os.getcwd()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ShrinkError:
        raise
    except SystemExit as error:
        raise DataError(f"{where} ended the program with sys.exit({error.code!r})") from error
    except Exception as error:  # whatever the user's code raises
        raise DataError(f"{where} raised {type(error).__name__}: {error}") from error
    finally:
        os.chdir(folder)


def each(items: Iterable[T], where: str) -> Iterator[T]:
    """Go through what the user's code yields, every step of it inside :func:`user_code`."""
    end = object()
    with user_code(where):
        rest = iter(items)
    while True:
        with user_code(where):
            item = next(rest, end)
        if item is end:
            return
        yield item  # type: ignore[misc]


def load_function(text: str) -> Callable[..., Any]:
    """Import a function from a file, whose own imports find the files beside it.

    Args:
        text: ``path/to/file.py:function``.

    Raises:
        DataError: Not of that form, no such file or function, or the file itself raises.
    """
    file, colon, name = text.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py" or not name:
        raise DataError(f"{text}: takes the form file.py:function")
    if not path.is_file():
        raise DataError(f"{path}: no such file{nearest_file(path)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)
    try:
        with user_code(str(path)):
            spec.loader.exec_module(module)
    finally:
        if folder in sys.path:  # the user's code may have taken it out
            sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"{path}: has no function {name!r}{nearest(name, vars(module))}")
    found: Callable[..., Any] = function
    return found


def load_metric(text: str) -> Callable[[Any], float]:
    """A function of the outputs of every input that gives a number; higher is better.

    Args:
        text: ``path/to/file.py:function``.

    Raises:
        DataError: As :func:`load_function`. The metric itself raises it when the function does,
            or gives something else than a number.
    """
    function = load_function(text)

    def metric(outputs: Any) -> float:
        with user_code(text):
            value = function(outputs)
        try:
            if isinstance(value, str | bytes | bool):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            said = f"{value!r}"[:80]
            raise DataError(f"{text} returned {said}, not a number") from error
        if number != number:  # NaN would be no better and no worse than anything
            raise DataError(f"{text} returned NaN, not a number")
        return number

    return metric
