"""The place of one weight, and the nodes that are put there."""

from __future__ import annotations

import onnx_ir as ir

from onnxshrink.graph import surgery
from onnxshrink.graph.file.model import Model
from onnxshrink.graph.surgery import Recorder
from onnxshrink.graph.weights.views import WeightView

#: Bytes that the nodes, names and headers of a rebuilt weight cost, about.
REBUILD_OVERHEAD = 120


def has_initializers(model: Model, view: WeightView) -> bool:
    """Whether constants beside the weight can be initializers that are not inputs."""
    return not view.is_node and surgery.has_initializers(model, view.scope)


class Rebuild(Recorder):
    """Nodes and constants that take the place of one weight, in the scope where it lives.

    The rebuilt value takes the name of the weight, so the operators that use it stay as they are,
    byte for byte, and people still find the weight by its name. Constants are stored the way the
    weight was.

    Attributes:
        nbytes: Bytes of the constants so far, and about as many as nodes and headers cost.
    """

    def __init__(self, model: Model, view: WeightView):
        # Every name is written twice or more: in a small model long ones are a good part of it.
        prefix = f"{model.unused_name('w')}."
        as_nodes = not has_initializers(model, view)
        super().__init__(model, view.scope, prefix=prefix, as_nodes=as_nodes)
        self.view = view
        self.nbytes = REBUILD_OVERHEAD

    def finish(self, result: ir.Value) -> None:
        """Put ``result`` in place of the weight, and the weight out of the file."""
        value, name = self.view.value, self.view.name
        self.place()
        self.model.touch(name)
        value.replace_all_uses_with(result)
        self.drop()
        result.name = name

    def place(self) -> None:
        """Put the nodes so far where the weight is; whatever uses it can use them."""
        old = self.view.value.producer()
        if old is None:
            self.put_first()
        else:
            self.put_before(old)

    def drop(self) -> None:
        """Take the weight out of the file once nothing uses it any more."""
        surgery.forget(self.model, self.view.value)
