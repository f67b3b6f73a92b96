"""Which channels, neurons and heads of a graph can be removed together, and their removal.

``labels.analyse`` labels every index of every axis of every tensor; ``groups`` sorts the labels
into units that may go; ``removal`` takes a choice of units out of the model. ``rules`` say how
operators carry labels from their inputs to their outputs. ``ranking`` and ``shares`` say which and
how many go, ``probing`` and ``losses`` what that costs, ``refit`` makes up for it.
"""
