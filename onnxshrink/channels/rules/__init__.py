"""How every operator carries channels: one table, made of one part for each kind of operator."""

from onnxshrink.channels.rules import (
    attention,
    barriers,
    contraction,
    control,
    elementwise,
    experts,
    images,
    indexed,
    movement,
    norms,
    quantized,
    recurrent,
    reduction,
    reshape,
    rotary,
    shape,
)

RULES = {
    **attention.RULES,
    **barriers.RULES,
    **contraction.RULES,
    **control.RULES,
    **elementwise.RULES,
    **experts.RULES,
    **images.RULES,
    **indexed.RULES,
    **movement.RULES,
    **norms.RULES,
    **quantized.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **reshape.RULES,
    **rotary.RULES,
    **shape.RULES,
}
