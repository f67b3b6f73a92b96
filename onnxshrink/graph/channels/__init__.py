"""Which channels, neurons and heads of a graph can be removed together, and their removal.

``walk.analyse`` labels every index of every axis of every tensor; ``groups`` sorts the labels into
units that may go; ``cut`` takes a choice of units out of the model. ``rules`` say how operators
carry labels from their inputs to their outputs.
"""
