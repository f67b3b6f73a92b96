"""The only package that imports onnxruntime, and only inside the functions that use it."""
