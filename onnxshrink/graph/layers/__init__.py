"""Layers and what lies around them: biases, norms, what can be scaled or refitted."""
