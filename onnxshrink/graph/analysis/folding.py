"""What computing a node in advance may cost: a few bytes of a model can ask for terabytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

#: Operators whose work depends on what their attributes and integer inputs say, and these inputs'
#: places; of all others it is bounded by the sizes of what goes in.
_GROWING: dict[str, tuple[int, ...]] = {
    "AveragePool": (), "CenterCropPad": (1,), "Col2Im": (1,), "ConstantOfShape": (0,), "Conv": (),
    "ConvInteger": (), "ConvTranspose": (), "Expand": (1,), "LpPool": (), "MaxPool": (),
    "MaxUnpool": (2,), "OneHot": (1,), "Pad": (1,), "QLinearConv": (), "Resize": (2, 3),
    "Tile": (1,), "Upsample": (1,),
}  # fmt: skip
_MOST_ELEMENTS = 2**24


def affordable(op_type: str, numbers: Iterable[int], inputs: Sequence[np.ndarray | None]) -> bool:
    """Whether a node with constant inputs may be computed.

    Args:
        op_type: Its operator.
        numbers: The integers in its attributes.
        inputs: Its inputs; None for those that are left out.
    """
    known = [array for array in inputs if array is not None]
    most = max((array.size for array in known), default=1)
    if op_type == "Range" and len(known) == 3:
        start, limit, delta = (float(array.reshape(-1)[0]) for array in known if array.size)
        return delta != 0 and (limit - start) / delta <= _MOST_ELEMENTS
    if op_type not in _GROWING:
        return True
    said = [abs(int(number)) + 1 for number in numbers]
    for place in _GROWING[op_type]:
        if place < len(inputs) and (array := inputs[place]) is not None:
            said += [abs(int(number)) + 1 for number in array.reshape(-1).tolist()]
    return most * math.prod(said) <= _MOST_ELEMENTS
