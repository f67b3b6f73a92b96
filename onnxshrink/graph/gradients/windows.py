"""How the windows of a kernel lie on values, and the sums over them that gradients take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from onnxshrink.graph.analysis.shape_rules import static
from onnxshrink.graph.gradients.application import Application
from onnxshrink.graph.gradients.terms import Term

#: Attributes by which windows may cover more than there is, or less.
_OTHER_SIZES = {"output_shape", "output_padding", "ceil_mode"}
#: A kernel with more places than this is multiplied by a convolution, not place by place.
_FEW = 64


@dataclass(frozen=True)
class Windows:
    """Windows of a kernel on values.

    Padded by ``before`` and ``after`` (which may be negative) the windows cover the values exactly:
    from the first one's first place to the last one's last. So sums over windows and their
    gradients need no paddings of their own, and sizes may be open.

    Attributes:
        strides: From window to window, along each axis of places.
        dilations: From place to place within one.
        groups: Groups of channels, each with a kernel of its own.
        before: Places that are missing in front, along all axes.
        after: Places that are missing behind.
        pads: Both, where they are known beforehand.
    """

    strides: Sequence[int]
    dilations: Sequence[int]
    groups: int
    before: Term
    after: Term
    pads: Sequence[int] | None

    @classmethod
    def of(cls, op: Application, kernel: Term, large: Term, small: Term) -> Windows:
        """The windows of a node.

        Args:
            op: The node.
            kernel: Sizes of a window along the axes of places.
            large: The values that windows lie on.
            small: Those of which there is one for each window.
        """
        places = large.rank - 2
        strides = op.integers("strides", [1] * places)
        dilations = op.integers("dilations", [1] * places)
        pads = op.integers("pads", [0] * 2 * places)
        rule, tape = op.text("auto_pad", "NOTSET") or "NOTSET", op.tape
        there, windows = large.sizes[2:], small.sizes[2:]
        covered = (windows - 1) * tape.integers(strides) + 1
        covered = covered + (kernel - 1) * tape.integers(dilations)
        if rule == "VALID":
            pads = [0] * 2 * places
        before = tape.integers(pads[:places])
        if computed := rule.startswith("SAME") or "output_shape" in op.node.attributes:
            more = op.integers("output_padding", [0] * places)
            total = (covered + tape.integers(more) - there).apply("Max", tape.integers([0]))
            before = total / 2 if rule == "SAME_UPPER" else total - total / 2
        computed |= max(strides, default=1) > 1 or bool(_OTHER_SIZES & {*op.node.attributes})
        none = tape.integers([0, 0])
        after = tape.joined([none, covered - there - before])
        before = tape.joined([none, before])
        group = op.integer("group", 1)
        return cls(strides, dilations, group, before, after, None if computed else pads)

    @property
    def padded(self) -> bool:
        """Whether any place may be missing."""
        return self.pads is None or any(self.pads)

    def covered(self, large: Term, value: float = 0) -> Term:
        """The values, padded."""
        return large.pad(self.before, self.after, value) if self.padded else large

    def gather(self, covered: Term, kernel: Term) -> Term:
        """Sums over windows of padded values."""
        return covered.tape.node(
            "Conv", covered, kernel, strides=self.strides, dilations=self.dilations,
            group=self.groups,
        )  # fmt: skip

    def spread(self, small: Term, kernel: Term) -> Term:
        """The transposed of that: each value is spread over its window, and the padding cut off."""
        size, after = static(kernel.shape), self.after
        strided = max(self.strides, default=1) > 1
        if size is None or (strided and self.groups == 1):
            full = small.tape.node(
                "ConvTranspose", small, kernel, strides=self.strides, dilations=self.dilations,
                group=self.groups,
            )  # fmt: skip
            return full.pad(-self.before, -after) if self.padded else full
        # By the kernel turned round: ONNX Runtime has faster convolutions than transposed ones.
        around = [(k - 1) * d for k, d in zip(size[2:], self.dilations, strict=True)] * 2
        if self.pads is not None:
            around = [reach - pad for reach, pad in zip(around, self.pads, strict=True)]
        else:
            small = self._apart(small)
            after = after + small.tape.integers([0, 0, *(stride - 1 for stride in self.strides)])
        made = small.tape.node(
            "Conv", small, self._turned(kernel, size), dilations=self.dilations,
            group=self.groups, pads=[max(pad, 0) for pad in around],
        )  # fmt: skip
        if self.pads is None:
            return made.pad(-self.before, -after)
        less, half = [min(pad, 0) for pad in around], len(around) // 2
        before, after = (small.tape.integers([0, 0, *end]) for end in (less[:half], less[half:]))
        return made.pad(before, after) if any(less) else made

    def _apart(self, small: Term) -> Term:
        """Zeros between windows, so that the strides are 1."""
        tape, places = small.tape, len(self.strides)
        single = small.unsqueeze([3 + 2 * place for place in range(places)])
        behind = [0, 0]
        for stride in self.strides:
            behind += [0, stride - 1]
        padded = single.pad(tape.integers([0] * len(behind)), tape.integers(behind))
        sizes = small.sizes[2:] * tape.integers(self.strides)
        return padded.reshape(tape.joined([tape.integers([0, 0]), sizes])).with_axes(small.rank)

    def _turned(self, kernel: Term, size: Sequence[int]) -> Term:
        """[groups * outputs, inputs, places] as [groups * inputs, outputs, places from behind]."""
        tape, (rows, inputs, *places) = kernel.tape, size
        axes = [axis + 2 for axis, count in enumerate(places) if count > 1]
        outputs = rows // self.groups
        split = kernel.reshape([self.groups, outputs, inputs, *places])
        moved = split.transpose((0, 2, 1, *range(3, len(size) + 1)))
        turned = moved.reshape([self.groups * inputs, outputs, *places])
        if not axes:
            return turned
        ends = ([end] * len(axes) for end in (-1, -(2**62)))
        steps = tape.integers([-1] * len(axes))
        return turned.apply("Slice", *map(tape.integers, ends), tape.integers(axes), steps)

    def kernel(self, covered: Term, small: Term, shape: Sequence[int]) -> Term:
        """What each weight of the kernel multiplies, summed over all windows and all samples.

        Args:
            covered: [samples, groups * inputs, places], padded.
            small: [samples, groups * outputs, windows].
            shape: Of the kernel, [groups * outputs, inputs, places].
        """
        rows, inputs, *size = shape
        offsets = list(product(*(range(count) for count in size)))
        if len(offsets) > _FEW:
            return self._kernel_by_windows(covered, small)
        tape, groups, places = small.tape, self.groups, range(len(size))
        alone = inputs == 1 and rows == groups  # every channel has a kernel of its own
        first = 2 if alone else 1
        if not alone:  # channels last, so that what is read lies in rows
            covered = covered.transpose((0, *range(2, covered.rank), 1))
        flow = small.transpose((1, 0, *range(2, small.rank))).reshape([groups, rows // groups, -1])
        axes, steps = (tape.integers(each) for each in ([first + p for p in places], self.strides))
        lengths = (small.sizes[2:] - 1) * steps + 1
        found = []
        for offset in offsets:
            start = tape.integers([at * d for at, d in zip(offset, self.dilations, strict=True)])
            part = covered.apply("Slice", start, start + lengths, axes, steps)
            if alone:
                products = (small * part).with_axes(small.rank)
                found.append(products.sum([0, *range(2, small.rank)], keep=False))
            else:
                part = part.reshape([-1, groups, inputs]).transpose((1, 0, 2))
                found.append(flow @ part)
        return (
            tape.joined(found)
            .reshape([*size, rows, inputs])
            .transpose((len(size), len(size) + 1, *places))
        )

    def _kernel_by_windows(self, covered: Term, small: Term) -> Term:
        """By a convolution: samples and channels change places, strides and dilations do."""
        tape, places = small.tape, range(2, small.rank)
        n, size = tape.integers([-1]), covered.sizes
        split = covered.reshape(
            tape.joined([size[0:1], tape.integers([self.groups]), n, size[2:]])
        ).transpose((2, 1, 0, *(place + 1 for place in places)))
        operand = split.reshape(tape.joined([size[1:2] / self.groups, n, size[2:]]))
        turned = (1, 0, *places)
        summed = tape.node(
            "Conv", operand, small.transpose(turned), strides=self.dilations,
            dilations=self.strides, group=self.groups,
        )  # fmt: skip
        return summed.transpose(turned)
