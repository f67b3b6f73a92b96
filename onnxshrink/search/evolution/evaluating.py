"""What comes of a recipe, in this process or in another that shares the folder of the results."""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshrink import files
from onnxshrink.contract import Settings
from onnxshrink.errors import RecipeError, ShrinkError, internal
from onnxshrink.goal import Goal
from onnxshrink.pipeline import Pass
from onnxshrink.recipe import Recipe, Storage
from onnxshrink.search.evaluation import Evaluator

if TYPE_CHECKING:
    from onnxshrink.search.platform import Name

_log = logging.getLogger(__name__)
_FAR = 8.0  # times what may be lost: beyond, nothing is learned from how much smaller it is
_here = threading.local()  # the evaluator of each thread, and for what it is


@dataclass(frozen=True)
class Evaluation:
    """What came of a recipe.

    Attributes:
        nbytes: Bytes of the file, stored as asked for.
        seen: Share of what may be lost that is lost on the inputs that judge.
        error: Largest relative error of an output.
        latency: Time over the original's, where it was asked for.
        why_not: Why the recipe does not stand; empty where it does.
    """

    nbytes: int = 0
    seen: float = math.inf
    error: float = math.inf
    latency: float | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Task:
    """All that another process needs to evaluate recipes on a model.

    Attributes:
        source: The model file.
        first: The steps in front of every recipe.
        settings: How to check, with the inputs; of these steps see none of the unseen.
        goal: What the answers must keep.
        storage: How the results will be stored.
        platform: Where they shall run.
        timed: Whether the latency is asked for.
        max_opset: The operator set up to which steps may raise the model's.
        worker: What the process that runs models is made with.
    """

    source: str
    first: tuple[Pass, ...]
    settings: Settings
    goal: Goal
    storage: Storage
    platform: Name
    timed: bool = False
    max_opset: int | None = None
    worker: Mapping[str, Any] = field(default_factory=dict)

    def evaluator(self) -> Evaluator:
        """An evaluator of one's own, with a process to run models in."""
        from onnxshrink.graph.forms import coded_read
        from onnxshrink.runtime.worker import Worker
        from onnxshrink.search.platform import PLATFORMS

        model, _ = coded_read.load(self.source)
        model.max_opset = self.max_opset
        worker = Worker(**self.worker)
        worker.start()
        where = PLATFORMS[self.platform]
        return Evaluator(model, self.first, self.settings, self.goal, worker, self.storage, where)

    def write(self, path: Path) -> str:
        """Write it for other processes; the SHA-256 of what was written.

        Raises:
            RecipeError: A part of it, such as a metric, cannot be sent to another process.
        """
        sent = replace(self.settings, progress=_quiet, cache=None, findings={}, unseen=())
        try:
            data = pickle.dumps(replace(self, settings=sent))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RecipeError(
                f"the search cannot be sent to other processes: {error}; without --jobs and "
                "--scheduler it runs in this one"
            ) from error
        with files.output(path, durable=False) as file:
            file.write(data)
        return hashlib.sha256(data).hexdigest()


def evaluate(task: str, digest: str, recipe: str) -> Evaluation:
    """Evaluate a recipe for a task that was written to a file.

    Args:
        task: The file.
        digest: The SHA-256 that it must have: nothing else is unpickled.
        recipe: The steps behind the first ones, as YAML.
    """
    try:
        if getattr(_here, "digest", None) != digest:
            data = Path(task).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                return Evaluation(why_not=f"{task}: is not what the search has written")
            known: Task = pickle.loads(data)
            _here.task, _here.evaluator = known, known.evaluator()
            _here.digest = digest
    except OSError as error:
        return Evaluation(why_not=f"{task}: this machine does not see it: {error}")
    except ShrinkError as error:
        return Evaluation(why_not=str(error))
    return outcome(_here.evaluator, Recipe.parse(recipe).steps, timed=_here.task.timed)


def outcome(ask: Evaluator, steps: tuple[Pass, ...], *, timed: bool) -> Evaluation:
    """What comes of a recipe; whatever goes wrong is an outcome, too."""
    from onnxshrink.search.measured import bench_tried

    try:
        one = ask.evaluate(steps)
        if one is None:
            return Evaluation(why_not=ask.why_not)
        if one.misses or not one.seen <= _FAR:
            lost = one.misses[0] if one.misses else f"{one.seen:.3g} times what may be lost is lost"
            return Evaluation(why_not=lost)
        if timed:
            bench_tried(ask, [one])
        return Evaluation(one.nbytes, one.seen, one.error, one.latency)
    except ShrinkError as error:
        return Evaluation(why_not=str(error))
    except Exception as error:  # a bug in one recipe is not the end of a study
        _log.debug("a recipe:", exc_info=True)
        return Evaluation(why_not=internal(error))


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody watches another process."""
