"""Options are dataclass fields, declared once; YAML, the command line and Python all read them.

>>> @dataclass(frozen=True, kw_only=True)
... class Example:
...     bits: int = option(8, help="bits a weight", ge=1, le=8)
>>> build(Example, {"bits": 4}, "example").bits
4
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from onnxshrink.errors import RecipeError

T = TypeVar("T")
_META = "onnxshrink"
_LARGEST = 2**63 - 1  # beyond this no integer of an option means anything


def option(
    default: Any,
    *,
    help: str,
    ge: float | None = None,
    le: float | None = None,
    also: Iterable[str] = (),
    spellings: Mapping[str, Any] | None = None,
) -> Any:
    """Declare one option of a dataclass.

    Args:
        default: Its value when nothing is said.
        help: One line for ``--help`` and ``explain``.
        ge: Smallest value allowed.
        le: Largest value allowed.
        also: Other names under which users know it, for instance ONNX Runtime's.
        spellings: Other ways to write a value, for instance ``{"QInt8": "int8"}``; numbers are
            written as text here.
    """
    meta = {
        "default": default,
        "help": help,
        "ge": ge,
        "le": le,
        "also": tuple(also),
        "spellings": spellings or {},
    }
    if isinstance(default, dict):  # every object gets a dict of its own
        return dataclasses.field(default_factory=default.copy, metadata={_META: meta})
    return dataclasses.field(default=default, metadata={_META: meta})


def nested(kind: type[T], **defaults: Any) -> Any:
    """Declare a field whose own options appear among those of its owner."""
    return dataclasses.field(default=kind(**defaults), metadata={_META: {"nested": kind}})


@dataclass(frozen=True)
class Option:
    """One option as everybody sees it.

    Attributes:
        name: Its name in Python and YAML; the command line writes ``-`` for ``_``.
        kind: The annotated type, resolved.
        owner: Name of the nested field that it belongs to, or None.
    """

    name: str
    kind: Any
    default: Any
    help: str
    ge: float | None
    le: float | None
    also: tuple[str, ...]
    spellings: Mapping[str, Any]
    owner: str | None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a ``Literal``, or of a list of them; empty for other types."""
        kind = typing.get_args(self.kind)[0] if self.many else _without_none(self.kind)
        return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()

    @property
    def many(self) -> bool:
        """Whether it takes a list."""
        return typing.get_origin(self.kind) is tuple

    def parse(self, value: Any, where: str) -> Any:
        """Check a value from Python, YAML or the command line, and give it its type.

        Raises:
            RecipeError: Names ``where``, the option, and what it takes.
        """
        try:
            if isinstance(value, str) or (isinstance(value, int) and abs(value) <= _LARGEST):
                # YAML knows true and 8.
                spelt = str(value).lower() if isinstance(value, bool) else str(value)
                value = self.spellings.get(spelt, value)
            parsed = _convert(value, self.kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise RecipeError(f"{where}: option {self.name!r} {error}") from error
        for bound, wrong, word in (
            (self.ge, operator.lt, "at least"),
            (self.le, operator.gt, "at most"),
        ):
            if bound is not None and parsed is not None and wrong(parsed, bound):
                said = shown(parsed)
                raise RecipeError(
                    f"{where}: option {self.name!r} must be {word} {bound:g}, not {said}"
                )
        return parsed


def shown(value: Any) -> str:
    """A value for a message: cut short, however much it holds."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        return inner[0] if len(inner) == 1 else kind
    return kind


def _convert(value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    inner = _without_none(kind)
    if inner is not kind:
        return None if value is None else _convert(value, inner)
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        if isinstance(value, bool):  # YAML has no other way to write "true" and "false"
            value = str(value).lower()
        if not isinstance(value, str | int) or value not in choices:
            raise ValueError(f"takes one of {', '.join(map(str, choices))}, not {shown(value)}")
        return value
    if origin is tuple:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"takes a list, not {shown(value)}")
        return tuple(_convert(item, typing.get_args(kind)[0]) for item in value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"takes true or false, not {shown(value)}")
        return value
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"takes a number, not {shown(value)}")
        if isinstance(value, float) and not math.isfinite(
            value
        ):  # an option that may be infinite says None instead
            raise ValueError(f"takes a finite number, not {value!r}")
        if abs(value) > _LARGEST:
            raise ValueError(f"takes a number of at most {_LARGEST}, not {shown(value)}")
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError(f"takes a whole number, not {shown(value)}")
        return kind(value)
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"takes text, not {shown(value)}")
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"takes a mapping, not {shown(value)}")
        return dict(value)
    return value


_known: dict[type[Any], tuple[Option, ...]] = {}  # type hints take a while to evaluate


def options_of(cls: type[Any]) -> tuple[Option, ...]:
    """The options of a dataclass, those of its nested fields included, in order."""
    if cls in _known:
        return _known[cls]
    hints = typing.get_type_hints(cls)
    found: list[Option] = []
    for field in dataclasses.fields(cls):
        meta = field.metadata.get(_META)
        if meta is None:
            continue
        if "nested" in meta:
            found += [
                dataclasses.replace(o, owner=field.name, default=getattr(field.default, o.name))
                for o in options_of(meta["nested"])
            ]
        else:
            found.append(Option(field.name, hints[field.name], owner=None, **meta))
    return _known.setdefault(cls, tuple(found))


def check_share(name: str, value: float | None) -> None:
    """Refuse what is no share.

    Raises:
        RecipeError: It is below 0 or beyond 1, as percents are.
    """
    if value is not None and not 0 <= value <= 1:
        percent = f"; {value:g} % is {value / 100:g}" if 1 < value <= 100 else ""
        raise RecipeError(f"{name} takes a share of 0 to 1, not {value!r}{percent}")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'dtype'?``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_file(path: str | os.PathLike[str]) -> str:
    """Why a file is not there: its folder is not, or another has nearly its name; or nothing."""
    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        return f", and no folder {os.path.dirname(path)}"
    try:
        return nearest(name, sorted(os.listdir(folder)))
    except OSError:  # it may be entered, but not listed
        return ""


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make an object from named values, checking every one.

    Raises:
        RecipeError: An unknown option (with the nearest name), or a value that it does not take.
    """
    owners = {o.name: o.owner for o in options_of(cls)}
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in _named(cls, values, where).items():
        owner = owners[name]
        (own if owner is None else inner.setdefault(owner, {}))[name] = value
    try:
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name in inner:
                own[field.name] = dataclasses.replace(field.default, **inner[field.name])  # type: ignore[type-var]
        return cls(**own)
    except RecipeError as error:  # of an object that looks at its options together
        said = str(error).removeprefix(f"{where}: ")
        raise RecipeError(f"{where}: {said}") from error


def amended(obj: T, changes: Iterable[Mapping[str, Any]], where: str) -> T:
    """The same object with other values for some options; later changes go before earlier ones.

    Raises:
        RecipeError: As :func:`build`.
    """
    values = dump(obj)
    for change in changes:
        values |= _named(type(obj), change, where)
    return build(type(obj), values, where)


def _named(cls: type[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checked values by the options' own names, whatever names they were given under."""
    by_name = {o.name: o for o in options_of(cls)}
    by_name |= {other: o for o in options_of(cls) for other in o.also}
    found: dict[str, Any] = {}
    for given, value in values.items():
        option_ = by_name.get(str(given).replace("-", "_"))
        if option_ is None:
            names = [o.name for o in options_of(cls)]
            raise RecipeError(
                f"{where}: unknown option {shown(given)}{nearest(str(given), by_name)}"
                f" (options: {', '.join(names)})"
            )
        parsed = option_.parse(value, where)
        if found.setdefault(option_.name, parsed) != parsed:
            raise RecipeError(
                f"{where}: option {option_.name!r} is given twice, as "
                f"{shown(found[option_.name])} and, by {shown(str(given))}, as {shown(parsed)}"
            )
    return found


def check(obj: Any, where: str) -> None:
    """Hold the options of an object that was made in Python against their declarations.

    Raises:
        RecipeError: A value that an option does not take.
    """
    for option_ in options_of(type(obj)):
        if option_.owner is None:
            value = option_.parse(getattr(obj, option_.name), where)
            object.__setattr__(obj, option_.name, value)  # a list becomes a tuple; it is frozen


def dump(obj: Any) -> dict[str, Any]:
    """The options that differ from their defaults, as plain YAML values."""
    out: dict[str, Any] = {}
    for option_ in options_of(type(obj)):
        owner = obj if option_.owner is None else getattr(obj, option_.owner)
        value = getattr(owner, option_.name)
        if value != option_.default:
            out[option_.name] = list(value) if isinstance(value, tuple) else value
    return out


def picked(kind: type[T], obj: Any) -> T:
    """An object of a dataclass, each of its fields taken from another that has them too."""
    return kind(**{field.name: getattr(obj, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
