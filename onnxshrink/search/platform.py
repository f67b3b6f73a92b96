"""Where a result shall run: which operators it may have that the model did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model

Name = Literal["cpu", "web", "mobile", "openvino"]

_RANGES_AT_RUN_TIME = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM",
     "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)  # fmt: skip


@dataclass(frozen=True)
class Platform:
    """A place to run.

    Attributes:
        name: What users call it.
        own: Whether ONNX Runtime's own operators are there.
        max_opset: The newest operator set that is.
        refused: Operators that run slowly or not at all there.
        blocked_tables: Whether rows are looked up rightly in tables whose scales are in blocks.
    """

    name: Name
    own: bool = True
    max_opset: int | None = None
    refused: frozenset[str] = frozenset()
    blocked_tables: bool = True

    def why_not(self, model: Model, original: Model) -> str:
        """What a model has that does not run here; empty where there is nothing new of it."""
        from onnxshrink.graph import operators

        known = {(node.domain, node.op_type) for node in original.nodes}
        new = {(node.domain, node.op_type) for node in model.nodes} - known
        for domain, kind in sorted(new):
            if (domain and not self.own) or kind in self.refused:
                return f"{kind} is not for {self.name}"
        if not self.blocked_tables and any(map(operators.looked_up_in_blocks, model.nodes)):
            return f"rows of a table with scales in blocks are wrong on {self.name}"
        if self.max_opset is not None and model.opset > max(self.max_opset, original.opset):
            return f"operator set {model.opset} is too new for {self.name}"
        return ""


#: Browsers run what ONNX defines. Accelerators of phones want ranges that are known beforehand.
#: What OpenVINO's provider does was probed with tools/probe_target.py (targets/openvino.json).
PLATFORMS: Mapping[str, Platform] = {
    "cpu": Platform("cpu"),
    "web": Platform("web", own=False, max_opset=21),
    "mobile": Platform("mobile", own=False, max_opset=19, refused=_RANGES_AT_RUN_TIME),
    "openvino": Platform(
        "openvino", refused=frozenset({"DynamicQuantizeLSTM", "GatherBlockQuantized"}),
        blocked_tables=False,
    ),
}  # fmt: skip
