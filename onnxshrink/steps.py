"""Every pass as a function; written by tools/api_reference.py."""

from onnxshrink.one_step import OneStep
from onnxshrink.passes.clean import Clean
from onnxshrink.passes.correct_bias import CorrectBias
from onnxshrink.passes.distill import Distill
from onnxshrink.passes.equalize import Equalize
from onnxshrink.passes.lower_ml import LowerMl
from onnxshrink.passes.merge_trees import MergeTrees
from onnxshrink.passes.prune_channels import PruneChannels
from onnxshrink.passes.prune_magnitude import PruneMagnitude
from onnxshrink.passes.prune_sparsegpt import PruneSparsegpt
from onnxshrink.passes.prune_wanda import PruneWanda
from onnxshrink.passes.quantize_dynamic import QuantizeDynamic
from onnxshrink.passes.quantize_rd import QuantizeRd
from onnxshrink.passes.quantize_static import QuantizeStatic
from onnxshrink.passes.quantize_weights import QuantizeWeights
from onnxshrink.passes.reconstruct import Reconstruct
from onnxshrink.passes.round_trees import RoundTrees
from onnxshrink.passes.share_codebook import ShareCodebook
from onnxshrink.passes.smooth import Smooth
from onnxshrink.passes.specialize import Specialize
from onnxshrink.passes.split_lowrank import SplitLowrank
from onnxshrink.passes.surgeon import Surgeon
from onnxshrink.passes.to_float16 import ToFloat16
from onnxshrink.passes.tune import Tune

clean = OneStep(Clean)
correct_bias = OneStep(CorrectBias)
distill = OneStep(Distill)
equalize = OneStep(Equalize)
lower_ml = OneStep(LowerMl)
merge_trees = OneStep(MergeTrees)
prune_channels = OneStep(PruneChannels)
prune_magnitude = OneStep(PruneMagnitude)
prune_sparsegpt = OneStep(PruneSparsegpt)
prune_wanda = OneStep(PruneWanda)
quantize_dynamic = OneStep(QuantizeDynamic)
quantize_rd = OneStep(QuantizeRd)
quantize_static = OneStep(QuantizeStatic)
quantize_weights = OneStep(QuantizeWeights)
reconstruct = OneStep(Reconstruct)
round_trees = OneStep(RoundTrees)
share_codebook = OneStep(ShareCodebook)
smooth = OneStep(Smooth)
specialize = OneStep(Specialize)
split_lowrank = OneStep(SplitLowrank)
surgeon = OneStep(Surgeon)
to_float16 = OneStep(ToFloat16)
tune = OneStep(Tune)
