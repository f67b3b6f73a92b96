"""Where a result shall run: what it may have there that the model did not.

What a runtime does with the forms that our passes write is probed by ``tools/probe_target.py``, and
kept in ``targets/NAME.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnxshrink.graph.file.model import Model
    from onnxshrink.passes._rounding import Cpu

Name = Literal["cpu", "cpu-vnni", "web", "mobile", "openvino"]

#: The probed forms whose codes only CPUs with VNNI compute rightly.
FULL_RANGE = ("static int8, full range", "dynamic int8, full range")
TARGETS = Path(__file__).parent.parent / "targets"
_RANGES_AT_RUN_TIME = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM",
     "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was found out about a runtime.

    Attributes:
        place: What was probed: an execution provider, or another runtime.
        engine: Its name and version.
        forms: Form -> operator -> ``right``, ``wrong``, ``helped`` by another provider, or why it
            is refused.
        avoid: How nodes are written that are not right, in the words of
            :mod:`onnxshrink.graph.forms.phrases` -> what is the matter.
    """

    place: str
    engine: str = ""
    forms: Mapping[str, Mapping[str, str]]
    avoid: Mapping[str, str]


@cache
def profile(name: str) -> Profile:
    """The profile of a target that was probed."""
    return Profile(**json.loads((TARGETS / f"{name}.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Platform:
    """A place to run.

    Attributes:
        name: What users call it.
        own: Whether ONNX Runtime's own operators are there.
        max_opset: The newest operator set that is.
        refused: Operators that run slowly or not at all there.
        cpu: For which CPUs codes are chosen that integer kernels multiply.
        probed: Whether there is a profile of it.
    """

    name: Name
    own: bool = True
    max_opset: int | None = None
    refused: frozenset[str] = frozenset()
    cpu: Cpu = "any"
    probed: bool = True

    def why_not(self, model: Model, original: Model) -> str:
        """What a model has that does not run here; empty where there is nothing new of it."""
        from onnxshrink.graph.forms import phrases

        known = {(node.domain, node.op_type) for node in original.nodes}
        new = {(node.domain, node.op_type) for node in model.nodes} - known
        for domain, kind in sorted(new):
            if (domain and not self.own) or kind in self.refused:
                return f"{kind} is not for {self.name}"
        avoid = profile(self.name).avoid if self.probed else {}
        for phrase in sorted(phrases.find(model) - phrases.find(original)) if avoid else ():
            if phrase in avoid:
                return f"{phrase} is not for {self.name}: {avoid[phrase]}"
        if self.max_opset is not None and model.opset > max(self.max_opset, original.opset):
            return f"operator set {model.opset} is too new for {self.name}"
        return ""


#: Browsers run what ONNX defines. Accelerators of phones want ranges that are known beforehand.
PLATFORMS: Mapping[str, Platform] = {
    "cpu": Platform("cpu"),
    "cpu-vnni": Platform("cpu-vnni", cpu="vnni"),
    "web": Platform("web", own=False, max_opset=21),
    "mobile": Platform(
        "mobile", own=False, max_opset=19, refused=_RANGES_AT_RUN_TIME, probed=False
    ),
    "openvino": Platform("openvino"),
}  # fmt: skip
