"""Searches over recipes. Each returns a recipe, never a model."""
