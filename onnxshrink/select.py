"""Which weights a pass works on, and with which options: global < operator type < name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from onnxshrink import plain_yaml
from onnxshrink.errors import RecipeError
from onnxshrink.options import amended, check, nested, option, shown

if TYPE_CHECKING:
    from onnxshrink.graph.weights.views import WeightView

SKIP: Literal["skip"] = "skip"
KEPT = "kept as asked"
T = TypeVar("T")


class Named(Protocol):
    """What a pattern can name: a weight, or a node."""

    @property
    def op_type(self) -> str:
        """The operator type that options are given for."""

    @property
    def types(self) -> set[str]:
        """All operator types that it goes by."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it goes by."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """The weights that a pass may touch.

    A pattern is an operator type (``Conv``), the name of a weight or of a node that uses it, or
    either with ``*`` and ``?`` (``encoder.layer.0*``).
    """

    only: tuple[str, ...] = option(
        (),
        help="work on these weights only: operator types, names, or patterns",
        also=("op_types_to_quantize",),
    )
    among: tuple[str, ...] = option(
        (),
        help="of those, on these only; as ONNX Runtime takes a list of types and one of nodes",
        also=("nodes_to_quantize",),
    )
    keep: tuple[str, ...] = option(
        (),
        help="leave these weights alone: operator types, names, or patterns",
        also=("nodes_to_exclude", "ignored_layers"),
    )
    min_size: int = option(256, help="leave tensors with fewer elements alone", ge=0)
    layers: Mapping[str, Any] = option(
        {}, help="other options by pattern, or 'skip': '{Gather: {dtype: int4}, head*: skip}'"
    )
    bits_table: str | None = option(
        None, help="YAML or JSON file with bits, a dtype, options or 'skip' for weights by name"
    )

    def __post_init__(self) -> None:
        check(self, "weights")
        if self.among and not self.only:  # one list alone is all that is asked for
            object.__setattr__(self, "only", self.among)
            object.__setattr__(self, "among", ())
        if self.bits_table is not None:
            # From here on it is part of the recipe, which can be replayed without the file.
            table = _read_table(self.bits_table)
            others = {name: row for name, row in self.layers.items() if name not in table}
            object.__setattr__(self, "layers", {**others, **table})
            object.__setattr__(self, "bits_table", None)
        for pattern, value in self.layers.items():
            if not isinstance(pattern, str):
                raise RecipeError(f"layers: takes names and patterns, not {shown(pattern)}")
            if value != SKIP and not isinstance(value, Mapping):
                raise RecipeError(
                    f"layers: {shown(pattern)} takes 'skip' or options such as {{dtype: int8}}, "
                    f"not {shown(value)}"
                )

    def why_not(self, view: WeightView, *, any_role: bool = False) -> str:
        """Why this weight is left alone, or an empty string.

        Args:
            view: The weight.
            any_role: Whether constants will do that no known operator multiplies with.
        """
        if view.size < self.min_size:
            return f"fewer than {self.min_size} elements"
        return self.left_out(view) or (view.locked if any_role else view.why_not)

    def left_out(self, item: Named) -> str:
        """Why the patterns leave something out, or an empty string."""
        for asked in (self.only, self.among):
            if asked and not any(matches(pattern, item) for pattern in asked):
                return "not among those asked for"
        if any(matches(pattern, item) for pattern in self.keep):
            return KEPT
        return KEPT if self.overrides(item) == SKIP else ""

    def overrides(self, view: Named) -> Mapping[str, Any] | Literal["skip"]:
        """Options that differ for this weight: those for its operator, then those for its name."""
        merged: dict[str, Any] = {}
        for value in self.matching(view):
            if value == SKIP:
                return SKIP
            merged.update(value)
        return merged

    def matching(self, view: Named) -> list[Mapping[str, Any] | Literal["skip"]]:
        """The rows of ``layers`` for this weight: by its operator's type, then by its name."""
        by_type = [v for pattern, v in self.layers.items() if pattern == view.op_type]
        by_name = [
            v
            for pattern, v in self.layers.items()
            if pattern != view.op_type and matches(pattern, view)
        ]
        return by_type + by_name


def _read_table(path: str) -> dict[str, Any]:
    """The rows of a bits table as ``layers`` has them.

    Raises:
        RecipeError: The file cannot be read, or is not a mapping of names.
    """
    where = f"bits_table {path}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text
        raise RecipeError(f"{where}: cannot be read: {error}") from error
    table = plain_yaml.parse(text, where)  # JSON is YAML too
    if not isinstance(table, dict):
        raise RecipeError(f"{where}: takes names of weights: {{encoder.weight: 4, head: skip}}")
    return {name: _row(value) for name, value in table.items()}


def _row(value: Any) -> Any:
    """A row of a bits table: a number of bits or the name of a type is short for an option."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"bits": value}
    return {"dtype": value} if isinstance(value, str) and value != SKIP else value


def matches(pattern: str, item: Named) -> bool:
    """Whether a pattern names something: its operator type, or one of its names."""
    # Equality first: exporters write names such as 'layers[0].weight', which are patterns too.
    return pattern in item.types or any(
        name == pattern or fnmatchcase(name, pattern) for name in item.names if name
    )


def left_out(only: Iterable[str], keep: Iterable[str], names: Collection[str]) -> str:
    """Why what goes by these names is left out, or an empty string."""
    if only and not any(_names(pattern, names) for pattern in only):
        return "not among those asked for"
    return KEPT if any(_names(pattern, names) for pattern in keep) else ""


def check_patterns(
    patterns: Iterable[str], every: Sequence[Collection[str]], owner: str, what: str
) -> None:
    """Hold patterns to what they may name.

    Args:
        patterns: The patterns.
        every: The names of each thing that there is; nothing is held to nothing.
        owner: Whose patterns they are.
        what: What one of the things is.

    Raises:
        RecipeError: One names nothing: a typing error, most likely.
    """
    lost = [p for p in patterns if every and not any(_names(p, names) for names in every)]
    if lost:
        raise RecipeError(f"{owner}: no {what} matches {', '.join(map(repr, lost))}")


def _names(pattern: str, names: Collection[str]) -> bool:
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


def unmatched(select: Select, items: Iterable[Named]) -> list[str]:
    """Patterns that name nothing at all: a typing error, most likely.

    The type of an operator is none, whether or not a model has such an operator with weights:
    recipes are for many models, and other tools' lists name all that they know.
    """
    from onnxshrink.graph.operators.names import operator_types

    items, types = list(items), operator_types()
    patterns = (*select.only, *select.among, *select.keep, *select.layers)
    return [p for p in patterns if p not in types and not any(matches(p, item) for item in items)]


def variants(owner: T, select: Select) -> list[T]:
    """A step's options, and those with each override.

    Raises:
        RecipeError: An override does not fit the step.
    """
    rows = [row for row in select.layers.values() if row != SKIP]
    name = getattr(owner, "name", "layers")
    return [owner, *(amended(owner, [row], name) for row in rows)]


def select(**defaults: Any) -> Any:
    """Declare the field of a pass that selects weights."""
    return nested(Select, **defaults)
