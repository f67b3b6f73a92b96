"""Operators that ONNX Runtime has in the default domain although ONNX does not."""

from __future__ import annotations

import onnx
from onnx.defs import OpSchema

_FLOATS = ["tensor(float16)", "tensor(float)", "tensor(double)", "tensor(bfloat16)"]


def declare() -> None:
    """Let onnx check, infer and convert models with such operators.

    ONNX Runtime's optimizer writes SimplifiedLayerNormalization for the RMS norms of language
    models, and without a schema onnx calls these invalid.
    """
    name, value = "SimplifiedLayerNormalization", OpSchema.FormalParameter
    if onnx.defs.has(name):
        return
    optional = OpSchema.FormalParameterOption.Optional
    schema = OpSchema(
        name, "", 1,
        inputs=[value("X", "T"), value("scale", "V")],
        outputs=[value("Y", "V"), value("inv_std_var", "U", param_option=optional)],
        type_constraints=[(kind, _FLOATS, "") for kind in "TUV"],
        attributes=[
            OpSchema.Attribute("axis", OpSchema.AttrType.INT, required=False),
            OpSchema.Attribute("epsilon", OpSchema.AttrType.FLOAT, required=False),
            OpSchema.Attribute("stash_type", OpSchema.AttrType.INT, required=False),
        ],
    )  # fmt: skip
    onnx.defs.register_schema(schema)
