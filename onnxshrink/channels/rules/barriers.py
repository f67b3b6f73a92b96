"""Operators around which everything stays whole, and why; what has no rule at all does so too."""

from __future__ import annotations

import onnx_ir as ir

from onnxshrink.channels.labels import Barrier, Rule, Walk

_WHY: dict[str, tuple[str, ...]] = {
    "its result counts places of the whole input": (
        "MaxUnpool", "NonMaxSuppression", "NonZero", "Unique",
    ),
    "fewer channels would get other random numbers": (
        "Bernoulli", "RandomNormalLike", "RandomUniformLike",
    ),
    "it mixes all values of a signal": ("DFT", "STFT"),
    "it is a coordinate grid": ("AffineGrid",),
    "its values are no channels": (
        "BitCast", "ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer",
        "StringSplit", "TfIdfVectorizer",
    ),
    "values in sequences are not followed": (
        "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SplitToSequence",
    ),
    "a loss of training": ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    "its states have sizes of their own": ("CausalConvWithState", "LinearAttention"),
}  # fmt: skip


def _barrier(why: str) -> Rule:
    def rule(walk: Walk, node: ir.Node) -> None:
        raise Barrier(why)

    return rule


RULES: dict[tuple[str, str], Rule] = {
    ("", name): _barrier(why) for why, names in _WHY.items() for name in names
}
