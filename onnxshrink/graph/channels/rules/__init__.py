"""How every operator carries channels: one table, made of one part for each kind of operator."""

from onnxshrink.graph.channels.rules import (
    attention,
    contraction,
    control,
    elementwise,
    movement,
    norms,
    quantized,
    recurrent,
    reduction,
    reshape,
    shape,
)

RULES = {
    **attention.RULES,
    **contraction.RULES,
    **control.RULES,
    **elementwise.RULES,
    **movement.RULES,
    **norms.RULES,
    **quantized.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **reshape.RULES,
    **shape.RULES,
}
