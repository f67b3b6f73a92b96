"""YAML that people wrote: plain values, and no more of them than the text seems to hold.

Dates are text here. A few lines of YAML can name the same list again and again, and mean billions
of values: what aliases stand for is counted before anything is made of it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    import yaml

_MOST_VALUES = 1_000_000
_DEEPEST = 64
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


def parse(text: str, where: str) -> Any:
    """The value of a YAML document.

    Args:
        text: The document.
        where: What to call it in messages.

    Raises:
        RecipeError: It is no YAML, a tag or number in it makes no value, or it stands for too much.
    """
    import yaml

    try:
        loader = _loader()(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(f"{where}{line}: not YAML: {reason}") from error
    except RecursionError as error:
        raise RecipeError(f"{where}: is nested too deeply") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # A tag that its text does not fit, as in '!!bool x'; an integer of thousands of digits.
        raise RecipeError(f"{where}: not YAML: a value does not fit its type") from error


def text(value: Any) -> str:
    """Plain values as YAML without anchors: what stands in two places is written twice."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    written: str = yaml.dump(value, Dumper=Dumper, sort_keys=False)
    return written


@functools.cache
def _loader() -> type[yaml.SafeLoader]:
    """PyYAML's safe loader, to which dates are text."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own name and form)
            first: [(tag, pattern) for tag, pattern in rows if tag != _TIMESTAMP]
            for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return Loader


def _count(root: yaml.Node, where: str) -> None:
    """Refuse what stands for too many values, is nested too deeply, or is no text.

    Raises:
        RecipeError: It is; says which.
    """
    sizes: dict[int, int] = {}
    open_now: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        key = id(node)
        if key in open_now:
            raise RecipeError(f"{where}: an alias stands for what it is in")
        if depth > _DEEPEST:
            raise RecipeError(f"{where}: is nested too deeply")
        if key not in sizes:
            open_now.add(key)
            found = 1
            if isinstance(node.value, str):
                _check_text(node.value, where)
            else:
                for child in node.value:
                    for part in child if isinstance(child, tuple) else (child,):
                        found += size(part, depth + 1)
            open_now.discard(key)
            sizes[key] = found
        if sizes[key] > _MOST_VALUES:
            raise RecipeError(f"{where}: stands for more than {_MOST_VALUES:,} values")
        return sizes[key]

    size(root, 0)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{where}: half of a surrogate pair is no text") from error
