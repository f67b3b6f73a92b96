"""A report as a page to show: one file, plots drawn here, for light and dark, for phones and print.

It tells what the report holds and nothing else. Each plot has a table beside it with the same
figures, marks differ in shape as well as in colour, and all that comes from a model is escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxshrink.page import sections
from onnxshrink.page.drawing import plain, style

if TYPE_CHECKING:
    from onnxshrink.report import Report


def document(report: Report) -> str:
    """The whole page, with nothing to be loaded from elsewhere."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{plain(sections.title(report))}</title>"
        "<style>body{margin:0;background:#fbfbfa}"
        "@media(prefers-color-scheme:dark){body{background:#14171a}}</style></head>\n"
        f"<body>{fragment(report)}</body></html>\n"
    )


def fragment(report: Report) -> str:
    """The same for a page that is there already, such as a notebook."""
    parts = (
        sections.head, sections.notes, sections.comparison, sections.search, sections.front,
        sections.weights, sections.inputs, sections.left_alone, sections.steps, sections.origin,
    )  # fmt: skip
    body = "\n".join(filter(None, (part(report) for part in parts)))
    return f'<div class="onnxshrink"><style>{style("style")}{style("plot")}</style>\n{body}\n</div>'
