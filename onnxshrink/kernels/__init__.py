"""Pure numpy and scipy: arrays in, arrays out. No ONNX, no files, no global state."""
