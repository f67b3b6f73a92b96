"""How one node is computed with integers: types, ranges, and what is done for accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxshrink.passes._rounding import Cpu

Method = Literal["mse", "minmax", "moving-average", "percentile", "entropy"]
Activations = Literal["uint8", "int8", "uint16", "int16"]
Weights = Literal["int8", "uint8", "int4"]


@dataclass(frozen=True, kw_only=True)
class StaticScheme:
    """The options of a node; the pass's options of the same names say what they mean."""

    method: Method
    percentile: float
    activations: Activations
    dtype: Weights
    per_channel: bool
    symmetric: bool
    symmetric_activations: bool
    correct_bias: bool
    cpu: Cpu
    reduce_range: bool
    least_sqnr: float
