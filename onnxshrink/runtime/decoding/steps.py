"""Feeds that go on from others, and models that go on from what they answered themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxshrink.runtime.worker import Worker

Feed = dict[str, np.ndarray]


class DecodingStep(dict[str, np.ndarray]):
    """A feed with the state that the original model had after the one before.

    Attributes:
        before: The feed of the run before; None for a first run.
        states: Input -> the output of that run.
        following: For each of its tokens the one that follows, or ``perplexity.UNKNOWN``; None
            where that is not known.
    """

    def __init__(
        self, feed: Feed, before: DecodingStep | None, states: Mapping[str, str],
        following: np.ndarray | None = None,
    ):  # fmt: skip
        super().__init__(feed)
        self.before = before
        self.states = states
        self.following = following


def following(feeds: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray | None]:
    """The tokens that follow those of each feed, where that is known."""
    return [feed.following if isinstance(feed, DecodingStep) else None for feed in feeds]


def answered(
    worker: Worker, names: Sequence[str], feeds: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[tuple[list[np.ndarray], float]]:
    """What the loaded model answers to feeds, and the seconds of each run.

    A step goes on from the state that this model had after the feed before it, where that is among
    the feeds: what a weaker cache does to later tokens is seen there.

    Args:
        worker: With the model loaded.
        names: Of its outputs.
        feeds: The inputs.
    """
    place = {name: number for number, name in enumerate(names)}
    waiting = {
        id(feed.before): feed for feed in feeds if isinstance(feed, DecodingStep) and feed.before
    }
    state: dict[int, Feed] = {}
    for feed in feeds:
        fed = feed
        if isinstance(feed, DecodingStep) and id(feed.before) in state:
            fed = {**feed, **state.pop(id(feed.before))}
        outputs, seconds = worker.step(fed)
        if (later := waiting.get(id(feed))) is not None:
            found = {n: outputs[place[o]] for n, o in later.states.items() if o in place}
            state[id(feed)] = handed_on(fed, found)
        yield outputs, seconds


def handed_on(fed: Mapping[str, np.ndarray], found: Feed) -> Feed:
    """The state for the next run; what a model gives back empty is kept, as callers do."""
    return {name: array if array.size else fed[name] for name, array in found.items()}
