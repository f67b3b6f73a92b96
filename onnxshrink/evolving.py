"""The search that takes its time: recipes evolve, in as many processes as there are."""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxshrink import api, budget, files, provenance
from onnxshrink.api import Options, StrPath
from onnxshrink.contract import Judge, Settings
from onnxshrink.errors import RecipeError
from onnxshrink.progress import counted
from onnxshrink.recipe import Recipe
from onnxshrink.report import Attempt, Report

if TYPE_CHECKING:
    from onnxshrink.goal import Goal
    from onnxshrink.graph.file.model import Model
    from onnxshrink.pipeline import Pass
    from onnxshrink.search.evaluation import Evaluator, Tried
    from onnxshrink.search.evolution.evaluating import Evaluation, Task
    from onnxshrink.search.evolution.places import Workplace
    from onnxshrink.search.evolution.study import Study
    from onnxshrink.search.platform import Name

_log = logging.getLogger(__name__)
_MOST = 9  # models that are written
_NEAR = 1.5  # times what may be lost, as judged by steps: unseen inputs need not be asked beyond
_BEGIN = 0.5  # of the time: for what evolution begins with
_TASK = ".search-task"


def evolve(
    source: StrPath,
    folder: StrPath,
    options: Options | None = None,
    *,
    goal: Goal | None = None,
    trials: int = 100,
    time_limit: float | None = None,
    latency: bool = False,
    target: Name = "cpu",
    jobs: int = 1,
    scheduler: str | None = None,
    executor: Executor | None = None,
    database: str | None = None,
    study: str = "onnxshrink",
    max_size: int | None = None,
    target_ratio: float | None = None,
) -> Report:
    """Let recipes evolve on a model, and write the models of which none is beaten by another.

    It begins with what :func:`onnxshrink.shrink` finds, from near-lossless to smallest, and crosses
    and changes recipes from there (NSGA-II: Deb et al., A fast and elitist multiobjective genetic
    algorithm, 2002). Every trial is kept in a database at once: a search that was stopped, or whose
    process was killed, goes on where it was. The models that are written are held against inputs
    that no trial has seen.

    Args:
        source: The model file; never modified.
        folder: Where the results go: ``best.onnx``, the models of the front, ``front.md``,
            ``front.svg``, ``report.html``, ``recipe.yaml`` and, by default, ``study.db``.
        options: How to run; with calibration inputs.
        goal: What the answers must keep; see :class:`onnxshrink.goal.Goal`.
        trials: Recipes that the study shall have tried in the end, those of earlier runs included.
        time_limit: Seconds after which no further recipe is tried.
        latency: Whether the latency is to be made the least of, too; it is measured where recipes
            are evaluated.
        target: Where the results shall run; see :func:`shrink`.
        jobs: Processes on this machine, or evaluations at a time in ``executor``.
        scheduler: The address of a Dask scheduler. Its workers need onnxshrink, and must see the
            model and the folder under the same paths.
        executor: Where to evaluate instead; its processes likewise.
        database: The study's database as a URL of SQLAlchemy; SQLite in the folder by default.
        study: Its name there.
        max_size: Bytes that ``best.onnx`` must not exceed.
        target_ratio: How many times smaller it must be.

    Returns:
        The report of ``best.onnx``, with all trials in ``tried``.

    Raises:
        BudgetMissed: The best result was written, but misses something.
        RecipeError: There are no calibration inputs; a package is missing; the scheduler does not
            answer; the study is of another model, other inputs or another goal.
        ShrinkError: As for :func:`onnxshrink.shrink`.
    """
    from onnxshrink.goal import Goal
    from onnxshrink.runtime.worker import Worker
    from onnxshrink.search.evaluation import Evaluator
    from onnxshrink.search.evolution.evaluating import Task
    from onnxshrink.search.evolution.places import place
    from onnxshrink.search.evolution.study import Study
    from onnxshrink.search.platform import PLATFORMS

    options, goal, folder = Options.of(options), goal or Goal(), Path(folder)
    if options.calibration is None or options.check == "off":
        raise RecipeError("search: recipes are judged by real inputs: give --calibration DATA")
    if options.certificate:
        raise RecipeError("search: --certificate is for one result: apply the recipe.yaml with it")
    if target not in PLATFORMS:
        raise RecipeError(f"target takes one of {', '.join(PLATFORMS)}, not {target!r}")
    storage = options.storage or "coded"
    begun = time.monotonic()
    deadline = None if time_limit is None else begun + time_limit
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    url = database or f"sqlite:///{(folder / 'study.db').absolute()}"
    out = folder / "best.onnx"
    with place(jobs, scheduler, executor) as where, Worker(**options.worker) as worker:
        worker.start()
        model, settings = api.prepare(
            source, out, options, worker, storage=storage, held_back=goal.metric is None
        )
        if Judge(model, settings, worker).proves_nothing:
            raise RecipeError("search: no output shows a difference on these inputs; give others")
        first = api.cleaning(model)
        of = _identity(model, settings, goal, f"{storage} {target} {latency} {options.max_opset}")
        known = Study(url, study, of, 3 if latency else 2, options.seed)
        ask = Evaluator(model, first, settings, goal, worker, storage, PLATFORMS[target])
        task = Task(
            str(Path(source).absolute()), first, ask.settings, goal, storage, target, latency,
            options.max_opset, options.worker,
        )  # fmt: skip
        stopped = _begin(known, ask, latency, None if time_limit is None else
                         begun + _BEGIN * time_limit)  # fmt: skip
        if not stopped:
            stopped = _generations(known, ask, task, where, folder, trials, deadline)
        report = _finish(known, ask, out, options, latency, stopped)
    report.asked = {
        "trials": trials, "objectives": "bytes, loss" + ", latency" * latency, "target": target,
        **goal.asks, **budget.sizes_asked(max_size, target_ratio, time_limit),
    }  # fmt: skip
    provenance.trace(report, settings, options.command)
    with files.output(folder / "report.html") as file:
        file.write(report.to_html().encode())
    return budget.held(report, out, max_size, target_ratio)


def _identity(model: Model, settings: Settings, goal: Goal, more: str) -> dict[str, str]:
    """What a study is of: whatever else were compared in it could not be."""
    from onnxshrink.runtime.calibration_cache import data_digest

    asked = f"{sorted(goal.asks.items(), key=str)} {more}"
    return {
        "model": model.digest(),
        "data": data_digest([*settings.feeds, *settings.unseen]),
        "goal": hashlib.sha256(asked.encode()).hexdigest(),
    }


def _begin(study: Study, ask: Evaluator, latency: bool, deadline: float | None) -> str:
    """Tell a new study what the search with one number finds; why that ended early."""
    from onnxshrink.search import front
    from onnxshrink.search.evolution.evaluating import Evaluation
    from onnxshrink.search.evolution.genes import genes_of, neighbours
    from onnxshrink.search.measured import bench_tried
    from onnxshrink.search.smallest import Search

    if study.start is not None:
        return ""
    found = Search(ask, "latency" if latency else "size", deadline).run()
    every = found.tried if found.stopped else front.candidates(ask, found.tried, found.best)
    seeds = []
    for one in every:
        genes = genes_of(one.recipe.steps[len(ask.first) :])
        if genes is None or one.misses:
            continue
        if latency and one.latency is None:
            bench_tried(ask, [one])
        seeds.append((genes, Evaluation(one.nbytes, one.seen, one.error, one.latency)))
    own = genes_of(found.best.recipe.steps[len(ask.first) :])
    near = [] if own is None else neighbours(own, timed=latency)
    study.begin(found.best.recipe.to_yaml(), seeds, near)
    return found.stopped if found.stopped == "interrupted" else ""


def _generations(
    study: Study, ask: Evaluator, task: Task, where: Workplace, folder: Path, trials: int,
    deadline: float | None,
) -> str:  # fmt: skip
    """Let recipes evolve; why that ended early."""
    from onnxshrink.search.evolution import evaluating
    from onnxshrink.search.evolution.generations import Generations

    remote: tuple[object, ...] = ()
    path = folder.absolute() / _TASK
    if where.executor is not None:
        remote = (evaluating.evaluate, str(path), task.write(path))

    def here(recipe: str) -> Evaluation:
        return evaluating.outcome(ask, Recipe.parse(recipe).steps, timed=task.timed)

    try:
        return Generations(
            study, where, here, remote, trials, deadline, ask.settings.progress
        ).run()
    finally:
        path.unlink(missing_ok=True)


def _finish(
    study: Study, ask: Evaluator, out: Path, options: Options, latency: bool, stopped: str
) -> Report:
    """Hold the front against unseen inputs, write it, and the best of it."""
    from onnxshrink.search import front, telling
    from onnxshrink.search.evolution.generations import nondominated
    from onnxshrink.search.evolution.genes import steps_of
    from onnxshrink.search.smallest import Found

    ended = [*study.finished()]
    recipes = [steps_of(trial.params) for trial, _ in ended]
    outcomes = [found for _, found in ended]
    best_of = [n for n in nondominated(outcomes, timed=latency) if outcomes[n].seen <= _NEAR]
    chosen = [recipes[number] for number in _spread(best_of)]
    start = Recipe.parse(study.start or "").steps[len(ask.first) :]
    chosen += [steps for steps in (start, ()) if steps not in chosen]  # () stands everywhere
    looks = len({tuple(step.name for step in steps) for steps in chosen if steps})
    kept: list[Tried] = []
    for steps in counted(ask.settings.progress, "asking unseen inputs", chosen):
        one = ask.evaluate(steps, looks=max(looks, 1))
        if one is not None:
            one.result = None
            kept.append(one)
    best = accepted(kept)
    result = ask.result(best)
    telling.tell(result, Found(best, result, kept, looks, stopped), ask.goal, ask.settings, "size")
    points = front.write_models(ask, front.best_of_each_size(kept), best, out.parent)
    report = api.write(result, best.recipe, out, options, ask.storage)
    report.front = front.table(points, report.bytes_before)
    report.tried = front.merged(_attempts(recipes, outcomes, report.tried), points)
    failures = study.failures
    if failures:
        report.warnings.append(
            f"{len(failures)} of {study.count} trials failed, the last one because: {failures[-1]}"
        )
    if failures and len(failures) == study.count:
        report.warnings.append("no trial came to an end: the result is what the search began with")
    with files.output(out.parent / "recipe.yaml") as file:
        file.write(replace(best.recipe, storage=ask.storage).to_yaml().encode())
    return report


def accepted(kept: Sequence[Tried]) -> Tried:
    """The smallest that unseen inputs accept; where they accept none, the one that is nearest.

    Recipes of the same steps are one path, which was put in order without these inputs: it is taken
    from its largest on until one is refused, and so is one test, however many its recipes.
    """
    paths: dict[tuple[str, ...], list[Tried]] = {}
    for one in sorted(kept, key=lambda one: -one.nbytes):
        paths.setdefault(tuple(step.name for step in one.recipe.steps), []).append(one)
    taken = [
        one
        for path in paths.values()
        for one in itertools.takewhile(lambda one: one.keeps and not one.refused, path)
    ]
    if taken:
        return min(taken, key=lambda one: one.nbytes)
    return min(kept, key=lambda one: (len(one.misses), one.strain))


def _spread(front: Sequence[int]) -> list[int]:
    """So many of a front, at even distances, both ends included."""
    if len(front) <= _MOST:
        return list(front)
    return [front[place * (len(front) - 1) // (_MOST - 1)] for place in range(_MOST)]


def _attempts(
    recipes: Sequence[Sequence[Pass]], outcomes: Sequence[Evaluation], asked: Sequence[Attempt]
) -> list[Attempt]:
    """All trials for the report; those that unseen inputs were asked about with their answer."""
    from onnxshrink.search.evaluation import named

    known = {one.recipe: one for one in asked}
    for steps, found in zip(recipes, outcomes, strict=True):
        name = named(steps)
        if name not in known:
            verdict = "beaten by another" if found.seen <= 1 else "outside, as judged by steps"
            known[name] = Attempt(
                name, found.nbytes, found.seen, verdict, found.error, found.latency,
                found.seen <= 1,
            )  # fmt: skip
    return sorted(known.values(), key=lambda one: -one.nbytes)
