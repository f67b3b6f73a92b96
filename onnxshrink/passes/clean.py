"""Fold constants and batch norms, and drop what is duplicate or unused; same answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from onnxshrink.errors import UnsupportedModel
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass
from onnxshrink.progress import counted
from onnxshrink.report import size

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

_log = logging.getLogger(__name__)

#: In this order: folding makes duplicates, and sharing makes nodes that nobody uses.
Rewriter = Literal[
    "inline_functions",
    "fold_constants",
    "fold_batch_norms",
    "drop_identities",
    "share_duplicates",
    "share_subexpressions",
    "drop_unused",
]
REWRITERS = get_args(Rewriter)
_MANY_DOCS = 0.1  # of the file


@dataclass(frozen=True, kw_only=True)
class Clean(Pass):
    """Remove what a model does not need, without changing what it answers.

    Inlines functions, computes constant expressions, multiplies BatchNormalization into
    convolutions, stores equal constants once, and drops Identity and unused nodes. Every rewriter
    runs on a copy that is compared with the model: one that fails, changes an output or makes the
    file bigger is dropped by itself and reported.
    """

    keep: tuple[Rewriter, ...] = option((), help="rewriters not to run")
    fix_defaults: bool = option(
        False, help="make constants of inputs that have a default, so that passes can change them"
    )
    keep_metadata: bool = option(
        False, help="keep stack traces, source paths and module names that exporters note at nodes"
    )
    strip_docs: bool = option(
        False, help="drop doc strings, and all that is noted at nodes and values"
    )

    def apply(self, model: Model, ctx: Context) -> None:
        """Run every rewriter on a copy and adopt what stands."""
        from onnxshrink.graph.file import notes
        from onnxshrink.graph.rewrite import clean

        names: list[str] = ["fix_defaults"] * self.fix_defaults + list(REWRITERS)
        traces = model.note_bytes(notes.of_exporters)
        if traces and self.keep_metadata:
            ctx.skip("metadata", f"kept as asked: {_listed(traces)}")
        names += ["strip_traces"] * bool(traces and not self.keep_metadata)
        names += ["strip_docs"] * self.strip_docs
        docs = 0 if self.strip_docs else model.note_bytes(notes.all_of_them).total()
        docs -= traces.total()
        before, nodes = model.nbytes(), sum(1 for _ in model.nodes)
        if docs > _MANY_DOCS * before:
            ctx.skip("docs", f"doc strings and notes take {size(docs)}; strip_docs drops them")
        unchanged: Model | None = None  # a copy that a rewriter left as it is serves the next
        for name in counted(ctx.progress, self.name, names):
            if name in self.keep:
                ctx.skip(name, "kept as asked")
                continue
            trial, unchanged = unchanged or model.clone(), None
            try:
                getattr(clean, name)(trial)
                after, left = trial.nbytes(), sum(1 for _ in trial.nodes)
            except UnsupportedModel as error:
                ctx.skip(name, str(error))
                continue
            except Exception:  # a foreign rewriter may raise anything; the copy is lost
                _log.debug("%s fails on this model", name, exc_info=True)
                ctx.skip(name, "does not work on this model, which it leaves as it is")
                continue
            removed = nodes - left
            if removed == 0 and after == before:
                ctx.skip(name, "nothing to do")
                unchanged = trial if trial.edits == model.edits else None
            elif after > before:
                ctx.skip(name, f"would make the file {after - before} bytes bigger")
            elif reason := ctx.verify(trial):
                ctx.skip(name, f"dropped: {reason}")
            else:
                model.adopt(trial)
                note = f"{abs(removed)} nodes {'less' if removed >= 0 else 'more'}"
                note = _listed(traces) if name == "strip_traces" else note
                ctx.changed(name, after, before=before, kind="graph", note=note)
                before, nodes = after, left


def _listed(traces: Mapping[str, int]) -> str:
    """What exporters noted, by key, the longest first."""
    ranked = sorted(traces.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{key} {size(nbytes)}" for key, nbytes in ranked)
