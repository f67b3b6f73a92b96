"""Memory that is free, and that the C library keeps for later."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Give free memory back to the system, where the C library is one that can (glibc).

    Arrays of some megabytes that come and go leave holes, which would be kept until the end.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
