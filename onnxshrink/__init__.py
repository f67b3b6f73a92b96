"""Make any exported ONNX model several times smaller, and prove that it still gives the same answers."""

__version__ = "0.1.0"
