"""What exporters and people write beside a graph: doc strings, and metadata of its parts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from onnxshrink.graph.file.round_trip import OUR_KEYS

#: Whether a note goes: its key, empty for a doc string, and its text.
Drops = Callable[[str, str], bool]

DOC_STRING = "doc_string"
#: Keys under which exporters note where in their users' code a node comes from. No runtime reads
#: them.
_EXPORTERS = ("pkg.torch.", "pkg.onnxscript.", "onnxscript.", "pkg.onnx_ir.", "namespace")
_TRACE = re.compile(r"""(^|\n)\s*(File "|# File: |[\w./\\:<>-]+\.py(\(\d+\)|:\d+))""")


def all_of_them(key: str, text: str) -> bool:
    """Every note goes, but our own."""
    return not key.startswith(OUR_KEYS)


def of_exporters(key: str, text: str) -> bool:
    """What helps to debug an export goes: stack traces, source paths, names of modules."""
    return key.startswith(_EXPORTERS) if key else bool(_TRACE.search(text))


def stripped(model: onnx.ModelProto, drops: Drops) -> onnx.ModelProto:
    """A copy without notes that a function picks; the model's own metadata stays."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _walk(copy, drops, Counter(), clear=True)
    return copy


def counted(model: onnx.ModelProto, drops: Drops) -> Counter[str]:
    """The bytes of notes that a function picks, by key."""
    found = Counter[str]()
    _walk(model, drops, found, clear=False)
    return found


def strip_part(part: ir.Graph | ir.Function | ir.Node | ir.Value, drops: Drops) -> None:
    """Forget the notes of one part of a graph that a function picks."""
    if part.doc_string and drops("", part.doc_string):
        part.doc_string = None
    for key in [key for key, text in part.metadata_props.items() if drops(key, text)]:
        del part.metadata_props[key]


def _walk(message: Message, drops: Drops, found: Counter[str], *, clear: bool) -> None:
    for field, value in message.ListFields():
        if field.name == DOC_STRING:
            if drops("", value):
                found[DOC_STRING] += len(value.encode())
                if clear:
                    message.ClearField(field.name)
        elif field.name == "metadata_props" and not isinstance(message, onnx.ModelProto):
            gone = {place for place, e in enumerate(value) if drops(e.key, e.value)}
            for place in gone:
                found[value[place].key] += value[place].ByteSize()
            if clear and gone:
                entries = [onnx.StringStringEntryProto(key=e.key, value=e.value) for e in value]
                message.ClearField(field.name)
                kept = (entry for place, entry in enumerate(entries) if place not in gone)
                getattr(message, field.name).extend(kept)
        elif field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                _walk(inner, drops, found, clear=clear)
