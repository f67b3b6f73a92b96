"""Sentences, made the numbers that a model of text takes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxshrink.errors import DataError
from onnxshrink.reading import Reading
from onnxshrink.runtime.inputs.fitting import Note
from onnxshrink.runtime.inputs.ports import Feed, Found, Port, lacking

SUFFIXES = (".txt",)
_IDS = ("input_ids", "input_word_ids", "ids", "tokens")
_MASKS = ("attention_mask", "input_mask", "mask")
_TYPES = ("token_type_ids", "segment_ids", "input_type_ids")
_POSITIONS = ("position_ids",)
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


class Sentences:
    """Makes feeds of sentences; a tab parts the two of a pair.

    One sentence makes one feed of its own length, so that nothing is padded, unless the model's
    inputs have fixed lengths. Models that take strings need no tokenizer.

    Args:
        wanted: The model's inputs.
        reading: What the user says of them.
        note: Told what was cut.
    """

    def __init__(self, wanted: Mapping[str, Port], reading: Reading, note: Note):
        self._wanted = wanted
        self._reading = reading
        self._note = note

    def read(self, file: Path) -> Iterator[Found]:
        """Feeds of a text file, one sentence a line; empty lines are left out."""
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not text in UTF-8: {error}") from error
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        rows = self._rows
        for start in range(0, len(numbered) - rows + 1, rows):
            part = numbered[start : start + rows]
            where = f"{file}, line {part[0][0]}"
            yield where, functools.partial(self.feed, [line for _, line in part], where)

    def feed(self, lines: Sequence[str], where: str) -> Feed:
        """The inputs for some sentences.

        Raises:
            DataError: There is no tokenizer, or the model takes no text.
        """
        if self._strings is not None:
            port = self._strings
            column = port.dims is not None and len(port.dims) == 2
            texts = np.array(lines, object)
            return {port.name: texts[:, None] if column else texts}
        length = self._ids.fixed(-1)
        encoded = [self._encoded(line, length) for line in lines]
        longest = length or max(len(each.ids) for each in encoded)
        if not longest:
            raise DataError(f"{where}: the tokenizer makes no tokens of it")
        feed = {}
        for name, port in self._wanted.items():
            values = self._values(name, encoded, longest)
            if values is not None:
                feed[name] = values.astype(port.dtype)
        return feed

    def shown(self, feed: Feed) -> Iterator[tuple[str, bytes]]:
        """The texts that a feed's numbers stand for."""
        if self._strings is not None:
            texts = list(map(str, feed[self._strings.name].reshape(-1)))
        else:
            rows = np.atleast_2d(feed[self._ids.name]).tolist()
            texts = [self._tokenizer.decode(row, skip_special_tokens=False) for row in rows]
        yield ".txt", "\n".join(texts).encode()

    def _values(self, name: str, encoded: Sequence[Any], longest: int) -> np.ndarray | None:
        """What an input gets: [sentences, tokens]; None where it takes nothing of text."""
        if name == self._ids.name:
            return np.array([_padded(each.ids, longest, self._pad) for each in encoded])
        if name in _MASKS:
            return np.array([_padded(each.attention_mask, longest, 0) for each in encoded])
        if name in _TYPES:
            return np.array([_padded(each.type_ids, longest, 0) for each in encoded])
        if name in _POSITIONS:
            return np.tile(np.arange(longest), (len(encoded), 1))
        return None

    def _encoded(self, line: str, length: int | None) -> Any:
        encoded = self._tokenizer.encode(*line.split("\t", 1))
        most = min(filter(None, (length, self._reading.max_length)), default=None)
        if most is not None and len(encoded.ids) > most:
            self._note(f"sentences of more than {most} tokens are cut")
            encoded.truncate(most)
        return encoded

    # ---- what the model takes

    @functools.cached_property
    def _strings(self) -> Port | None:
        """The input that takes the text itself."""
        strings = [port for port in self._wanted.values() if port.dtype.kind == "O"]
        return strings[0] if len(strings) == 1 else None

    @functools.cached_property
    def _ids(self) -> Port:
        """The input that takes the tokens.

        Raises:
            DataError: None does.
        """
        whole = [port for port in self._wanted.values() if port.dtype.kind in "iu"]
        named = [port for port in whole if port.name in _IDS]
        found = named or [p for p in whole if p.name not in (*_MASKS, *_TYPES, *_POSITIONS)]
        if len(found) != 1:
            inputs = ", ".join(f"{port.name} {port.shown_dims}" for port in self._wanted.values())
            raise DataError(f"sentences fit no input of the model, or several: {inputs}")
        return found[0]

    @property
    def _rows(self) -> int:
        """Sentences of one feed."""
        port = self._strings or self._ids
        return port.fixed(0) or 1

    @functools.cached_property
    def _tokenizer(self) -> Any:
        path = self._reading.tokenizer
        if path is None:
            raise DataError(
                "sentences need a tokenizer: give --tokenizer tokenizer.json, the file that comes "
                "with the model"
            )
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise lacking("sentences", "the package tokenizers", "text") from error
        file = Path(path, "tokenizer.json") if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise DataError(f"{file}: no such file; --tokenizer takes a tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises Exception itself
            raise DataError(f"{file}: not a tokenizer.json: {error}") from error
        tokenizer.no_padding()  # one saved with padding would pad every sentence
        return tokenizer

    @functools.cached_property
    def _pad(self) -> int:
        """What fills a sentence up: the token of the usual name, else 0."""
        found = (self._tokenizer.token_to_id(name) for name in _PADS)
        return next((token for token in found if token is not None), 0)


def _padded(values: Sequence[int], length: int, fill: int) -> list[int]:
    return [*values, *[fill] * (length - len(values))]
