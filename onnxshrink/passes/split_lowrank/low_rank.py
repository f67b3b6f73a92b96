"""The factors behind split-lowrank: of which rank, split how, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np

    from onnxshrink.graph.file.model import Model
    from onnxshrink.graph.forms.split import SplitWay
    from onnxshrink.graph.weights.views import WeightView
    from onnxshrink.kernels.affine import Quantized
    from onnxshrink.kernels.lowrank import Spectrum
    from onnxshrink.pipeline import Context

Way = Literal["auto", "channel", "spatial"]
Integers = Literal["int8", "int4"]

_ERROR = 0.1
_RESIDUAL_RANK = 1 / 32  # of the full rank: what factors next to integers have if nothing is said
_SHORT = 2  # bytes of a factor's element next to integers


class Errors(TypedDict, total=False):
    """Relative errors of a weight, and of its outputs where its inputs are known."""

    relative_error: float
    output_error: float


@dataclass(frozen=True)
class SplitCandidate:
    """One way to split one weight.

    Attributes:
        view: The weight.
        way: How its operator is split.
        spectrum: Of the matrix whose rank decides.
        moment: Second moment of what the weight is multiplied with; None where that is unknown.
    """

    view: WeightView
    way: SplitWay
    spectrum: Spectrum
    moment: np.ndarray | None

    def nbytes(self, rank: int) -> int:
        """Bytes of two operators, about."""
        from onnxshrink.graph.forms import split

        return int(rank * self.way.weights * self.view.dtype.itemsize) + split.OVERHEAD

    def why_not(self, rank: int) -> str:
        """Why that rank does not pay; empty when it does."""
        if self.nbytes(rank) >= self.view.nbytes:
            return f"would not be smaller at rank {rank} of {min(self.way.shape)}"
        if rank * self.way.work >= self.way.work_before:
            return f"would take more multiplications at rank {rank}; 'force' splits it"
        return ""

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """The two sides; of two convolutions the second is refitted to what the first leaves."""
        from onnxshrink.kernels import lowrank

        left, right = self.spectrum.factors(rank)
        if self.moment is not None and self.way.kind == "spatial":
            second = lowrank.refit_columns(self.view.matrix, right, self.moment)
            left = second.transpose(0, 2, 1).reshape(left.shape)
        return left, right

    def errors(self, left: np.ndarray, right: np.ndarray) -> Errors:
        """How far the product of two sides is from the weight."""
        from onnxshrink.graph.forms import split

        return _errors(self.view, split.matrix_of(self.view, self.way, left @ right), self.moment)


def candidates(view: WeightView, kind: Way, moment: np.ndarray | None) -> Iterator[SplitCandidate]:
    """The ways to split a weight that are asked for.

    Raises:
        ValueError: It holds NaN or infinity, or the second moment is no such thing.
    """
    from onnxshrink.graph.forms import split
    from onnxshrink.kernels import lowrank

    for way in split.ways(view):
        if way.kind in (kind, "product", "lookup") or kind == "auto":
            seen = moment
            if way.kind == "spatial" and moment is not None:
                seen = lowrank.columns_moment(moment, view.shape[-1])
            yield SplitCandidate(
                view, way, lowrank.decompose(split.matrix(view, way), seen), moment
            )


def moment_of(view: WeightView, ctx: Context) -> np.ndarray | None:
    """The second moment of a weight's inputs; None where it is unknown, or differs by group."""
    from onnxshrink.graph.weights import second_moments

    found = second_moments.of(ctx.statistics, view)
    return found.mean()[0] if found is not None and found.groups == 1 else None


def unwhitened(view: WeightView, ctx: Context) -> str:
    """Why a weight's errors are not weighed by its inputs, for its row; empty where they are."""
    from onnxshrink.graph.weights import second_moments

    if moment_of(view, ctx) is not None:
        return ""
    known = second_moments.of(ctx.statistics, view)
    reason = second_moments.unknown(view) if known is None else "its inputs differ by group"
    return f" (not whitened: {reason})"


@dataclass(frozen=True)
class RankRule:
    """Which rank a weight gets; of its fields the first that is given decides.

    Attributes:
        rank: The rank itself.
        ratio: The share of its bytes that the weight keeps.
        energy: The share of the squared singular values that it keeps.
        error: The largest relative error.
    """

    rank: int | None = None
    ratio: float | None = None
    energy: float | None = None
    error: float | None = None

    @property
    def given(self) -> bool:
        """Whether anything was asked for."""
        return self != RankRule()

    def of(self, spectrum: Spectrum, most: float) -> int:
        """The rank that is asked for, from 1 to that of the matrix.

        Args:
            spectrum: Of the matrix.
            most: The rank at which factors take as many bytes as the weight.
        """
        full = len(spectrum.values)
        if self.rank is not None:
            return min(self.rank, full)
        if self.ratio is not None:
            return min(max(1, int(self.ratio * most)), full)
        if self.energy is not None:
            return spectrum.rank_of_energy(self.energy)
        error = _ERROR if self.error is None else self.error
        return spectrum.rank_of_energy(1 - min(error, 1) ** 2)


def share_out(
    views: Iterable[WeightView], kind: Way, moment: Callable[[WeightView], np.ndarray | None],
    ratio: float, *, force: bool,
) -> dict[WeightView, tuple[str, int]]:  # fmt: skip
    """Ranks with which all weights keep a share of their bytes, with the least sum of errors.

    The error of a weight is that of its outputs, squared and relative to them.

    Args:
        views: The weights.
        kind: How convolutions may be split.
        moment: The second moment that a weight is whitened with.
        ratio: The share.
        force: Whether splits are taken that cost bytes or multiplications.

    Returns:
        The kind of split and the rank; without the weights that are better left as they are.
    """
    import numpy as np

    from onnxshrink.kernels import allocation

    found, sizes, errors = [], [], []
    for view in views:
        choices: list[tuple[str, int]] = [("", 0)]
        size, error = [float(view.nbytes)], [0.0]
        try:
            known = list(candidates(view, kind, moment(view)))
        except ValueError:  # said again, and reported, when it is this weight's turn
            continue
        for candidate in known:
            for rank, lost in enumerate(candidate.spectrum.errors()):
                if rank and (force or not candidate.why_not(rank)):
                    choices.append((candidate.way.kind, rank))
                    size.append(candidate.nbytes(rank))
                    error.append(float(lost) ** 2)
        view.release()
        found.append((view, choices))
        sizes.append(np.array(size))
        errors.append(np.array(error))
    budget = ratio * sum(view.nbytes for view, _ in found)
    chosen = allocation.choose(sizes, errors, budget)
    picked = {view: choices[at] for (view, choices), at in zip(found, chosen, strict=True)}
    return {view: (kind, rank) for view, (kind, rank) in picked.items() if kind}


def correct(
    view: WeightView, moment: np.ndarray | None, rule: RankRule, dtype: Integers, model: Model,
    ctx: Context, lesser: str = "",
) -> None:  # fmt: skip
    """Replace a weight by factors, and by integers for what they leave of it.

    Rounded with error feedback where the inputs are known. The factors are then those of what the
    integers leave, as in LQER (2402.02446).

    Args:
        view: The weight.
        moment: The second moment to whiten with.
        rule: The rank of the factors.
        dtype: The type of the integers.
        model: The model, which is edited.
        ctx: Where to report.
        lesser: See :func:`unwhitened`.

    Raises:
        ValueError: NaN or infinity, or values too large for float16 factors.
    """
    from onnxshrink.graph.forms import split
    from onnxshrink.kernels import affine, lowrank

    matrix = view.matrix
    spectrum = lowrank.decompose(matrix, moment)
    sides = sum(matrix.shape)
    full = len(spectrum.values)
    most = view.nbytes / (_SHORT * sides)
    rank = rule.of(spectrum, most) if rule.given else max(1, int(full * _RESIDUAL_RANK))
    left, right = _short(spectrum.factors(rank))
    stored = _rounded(view, matrix - left @ right, dtype, moment is not None, ctx)
    if _SHORT * rank * sides + stored.nbytes + split.RESIDUAL_OVERHEAD >= view.nbytes:
        ctx.skip(view, f"would not be smaller at rank {rank} with the rest as {dtype}")
        return
    rebuilt = view.to_matrix(affine.dequantize(stored))
    left, right = _short(lowrank.decompose(matrix - rebuilt, moment).factors(rank))
    errors = _errors(view, left @ right + rebuilt, moment)
    after = split.with_residual(model, view, left, right, stored)
    note = f"rank {rank} of {full} and {dtype}{lesser}; smaller on disk, folded at load"
    ctx.changed(view, after, note=note, **errors)


def _rounded(
    view: WeightView, matrix: np.ndarray, dtype: Integers, feed: bool, ctx: Context
) -> Quantized:
    """A matrix in integers, each output with a scale of its own."""
    from dataclasses import replace

    import numpy as np

    from onnxshrink.graph.weights import second_moments
    from onnxshrink.kernels import affine

    values = view.from_matrix(matrix.astype(np.float32))
    axes = tuple(sorted(view.axes.contract))
    stored = affine.quantize(values, dtype, axes, clip="mse", short_scale=True)
    if not feed:
        return stored
    scale = np.broadcast_to(stored.scale, view.shape)
    zero = np.zeros_like(scale)
    codes = second_moments.fitted(
        ctx.statistics, view, scale, zero, affine.RANGES[dtype], matrix=matrix
    )
    return stored if codes is None else replace(stored, codes=codes.astype(stored.codes.dtype))


def _short(factors: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Factors in float32 that float16 holds exactly."""
    import numpy as np

    with np.errstate(over="ignore"):
        left, right = (side.astype(np.float16).astype(np.float32) for side in factors)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("its factors are too large for float16")
    return left, right


def _errors(view: WeightView, matrix: np.ndarray, moment: np.ndarray | None) -> Errors:
    from onnxshrink.kernels import lowrank

    found: Errors = {"relative_error": lowrank.output_error(view.matrix, matrix, None)}
    if moment is not None:
        found["output_error"] = lowrank.output_error(view.matrix, matrix, moment)
    return found
