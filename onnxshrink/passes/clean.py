"""Fold constants and batch norms, and drop what is duplicate or unused; same answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from onnxshrink.errors import ShrinkError
from onnxshrink.options import option
from onnxshrink.pipeline import Context, Pass

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

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


@dataclass(frozen=True, kw_only=True)
class Clean(Pass):
    """Remove what a model does not need, without changing what it answers.

    Inlines functions, computes constant expressions, multiplies BatchNormalization into
    convolutions, stores equal constants once, and drops Identity and unused nodes. Every rewriter
    runs on a copy that is compared with the model: one that fails, changes an output or makes the
    file bigger is dropped by itself and reported.
    """

    keep: tuple[Rewriter, ...] = option((), help="rewriters not to run")

    def apply(self, model: Model, ctx: Context) -> None:
        """Run every rewriter on a copy and adopt what stands."""
        from onnxshrink.graph.rewrite import clean

        for done, name in enumerate(REWRITERS):
            ctx.progress(self.name, done, len(REWRITERS))
            if name in self.keep:
                ctx.skip(name, "kept as asked")
                continue
            trial = model.clone()
            before, nodes = model.nbytes(), sum(1 for _ in model.nodes)
            try:
                getattr(clean, name)(trial)
                after = trial.nbytes()
            except ShrinkError as error:
                ctx.skip(name, str(error))
                continue
            except Exception as error:  # a foreign rewriter may raise anything; the copy is lost
                ctx.skip(name, f"failed on this model: {type(error).__name__}: {error}"[:200])
                continue
            removed = nodes - sum(1 for _ in trial.nodes)
            if removed == 0 and after == before:
                ctx.skip(name, "nothing to do")
            elif after > before:
                ctx.skip(name, f"would make the file {after - before} bytes bigger")
            elif reason := ctx.verify(trial):
                ctx.skip(name, f"dropped: {reason}")
            else:
                model.adopt(trial)
                note = f"{abs(removed)} nodes {'less' if removed >= 0 else 'more'}"
                ctx.changed(name, after, before=before, kind="graph", note=note)
