"""What is in a model, for people."""
