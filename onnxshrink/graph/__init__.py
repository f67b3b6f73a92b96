"""The only package that knows ONNX: loading and saving, weights and their uses, edits."""
