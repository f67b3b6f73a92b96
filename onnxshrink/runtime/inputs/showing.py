"""What the model will see, written for people: pictures, sounds, texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxshrink.errors import OutputError
from onnxshrink.files import output, writing
from onnxshrink.runtime.inputs.ports import Feed

_LIST = "inputs.txt"
_MOST = 32  # inputs that are shown; the list has all


class Maker(Protocol):
    """Who makes feeds of what people have, and can show them again."""

    def shown(self, feed: Feed) -> Iterator[tuple[str, bytes]]:
        """A feed as files: suffix and content of each."""
        ...


def show(feeds: Sequence[Feed], folder: Path, maker: Maker | None) -> None:
    """Write inputs into a folder: a list of what all hold, and the first as they look or sound.

    Args:
        feeds: The inputs.
        folder: Where to write; it is made, or is empty, or holds what an earlier run showed.
        maker: Who made them of something that can be shown.

    Raises:
        OutputError: Other things are there, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / _LIST).exists():
            raise OutputError(f"{folder}: holds other files; name a new folder for --show-inputs")
    lines = []
    for number, feed in enumerate(feeds):
        lines += [f"{number:04d} {name}: {_described(array)}" for name, array in feed.items()]
        for part, (suffix, data) in enumerate(_shown(feed, number, maker)):
            with output(folder / f"{number:04d}-{part}{suffix}", durable=False) as file:
                file.write(data)
    with output(folder / _LIST, durable=False) as file:
        file.write("\n".join([*lines, ""]).encode())


def _shown(feed: Feed, number: int, maker: Maker | None) -> Iterator[tuple[str, bytes]]:
    return iter(()) if maker is None or number >= _MOST else maker.shown(feed)


def _described(array: np.ndarray) -> str:
    text = f"{array.dtype} {list(array.shape)}"
    if array.dtype.kind == "O" or not array.size:
        return text
    values = array.astype(np.float64)
    return f"{text}, {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
