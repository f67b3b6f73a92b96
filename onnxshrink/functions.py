"""Functions that users name as ``file.py:function``: metrics, readers of inputs, graph surgery."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxshrink.errors import DataError
from onnxshrink.options import nearest


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
        raise DataError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise DataError(f"{path}: raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"{path}: has no function {name!r}{nearest(name, vars(module))}")
    found: Callable[..., Any] = function
    return found
