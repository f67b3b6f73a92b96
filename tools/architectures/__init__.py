"""Architectures with random weights in plain torch, for the tests of channel removal."""
