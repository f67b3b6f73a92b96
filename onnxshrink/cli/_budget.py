"""What the commands share that hold a result to a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._values import function_files, number, size_option
from onnxshrink.errors import BudgetMissed, RecipeError
from onnxshrink.goal import LIMITS, PRESETS

if TYPE_CHECKING:
    from onnxshrink.cli._run import RunOptions
    from onnxshrink.goal import Goal
    from onnxshrink.report import Report

F = TypeVar("F", bound=Callable[..., Any])

_PRESET = click.option(
    "--preset", type=click.Choice(PRESETS), default="balanced", show_default=True,
    help="How much may be lost where nothing else says.",
)  # fmt: skip
_MEASURES = click.option(
    "--measure", "measures", multiple=True, metavar="OUTPUT=KIND",
    help="What an output is, where it is not told right: labels, classes, tokens, embeddings, "
    "vectors, values, detections (of the output with boxes) or audio. Repeatable.",
)  # fmt: skip
_NO_BUDGET = click.option(
    "--no-budget", is_flag=True, help="Write the result whatever its answers have become."
)


#: What answers must keep, wherever it is asked: metavar, type and help of each option.
_GOALS: Mapping[str, tuple[str, Any, str]] = {
    "--min-agreement": ("SHARE", number, "least top-1 agreement, 0 to 1."),
    "--max-drop": ("D", number, "largest drop of --metric, or of top-1 agreement."),
    "--metric": (
        "FILE.py:FUNCTION", str,
        "called with the outputs of every calibration input; gives a number, higher is better.",
    ),
}  # fmt: skip


def goal_option(name: str, goes_with: str = "") -> Callable[[F], F]:
    """One thing that answers must keep.

    Args:
        name: The option.
        goes_with: The option without which it has no meaning.
    """
    metavar, kind, text = _GOALS[name]
    text = f"With {goes_with}: {text}" if goes_with else text[0].upper() + text[1:]
    return click.option(name, type=kind, metavar=metavar, help=text)


def budget_options(command: F) -> F:
    """What the answers must keep, and how small the result must be."""
    for decorate in reversed(
        (
            goal_option("--min-agreement"),
            click.option(
                "--max-error", type=number, metavar="E",
                help="Largest relative error of an output.",
            ),
            click.option(
                "--max-kl", type=number, metavar="NATS",
                help="Largest mean divergence of tokens or classes from the original's.",
            ),
            click.option(
                "--max-perplexity-rise", type=number, metavar="SHARE",
                help="How much higher the perplexity of the tokens that follow may be, as in 0.02.",
            ),
            goal_option("--max-drop"),
            goal_option("--metric"),
            _MEASURES,
            _PRESET,
            click.option("--max-size", metavar="SIZE", help="Largest result, as in 5MB or 800kB."),
            click.option(
                "--target-ratio", type=number, metavar="X", help="At least this many times smaller."
            ),
        )
    ):  # fmt: skip
        command = decorate(command)
    return command


def lifting_option(command: F) -> F:
    """The option that lifts a budget."""
    return _NO_BUDGET(command)


def step_budget_options(command: F) -> F:
    """The budget of a single step, whose own options say the rest."""
    return _NO_BUDGET(_PRESET(command))


@dataclass(frozen=True)
class Budget:
    """The values of these options.

    Attributes:
        values: What the answers must keep: fields of a goal, the metric by its name.
        sizes: How small the result must be.
        lifted: Whether answers need keep nothing.
    """

    values: Mapping[str, Any]
    sizes: Mapping[str, Any]
    lifted: bool = False

    @classmethod
    def take(cls, values: dict[str, Any], *, sizes: bool = True) -> Budget:
        """Take the values out of a command's.

        Args:
            values: All values of the command.
            sizes: Whether size goals are among them, and not options of a pass.
        """
        lifted = values.pop("no_budget", False)
        names = (*LIMITS, "metric") if sizes else ()
        goal = {name: values.pop(name) for name in names}
        goal["preset"] = values.pop("preset")
        if not sizes:
            return cls(goal, {}, lifted)
        goal["measures"] = dict(map(_measure, values.pop("measures")))
        given = [name for name in names if goal[name] is not None]
        if lifted and given:
            raise RecipeError(f"--no-budget: nothing is held to --{given[0].replace('_', '-')}")
        most = values.pop("max_size")
        small = {
            "max_size": size_option(most, "--max-size") if most else None,
            "target_ratio": values.pop("target_ratio"),
        }
        if small["target_ratio"] is not None and small["target_ratio"] < 1:
            asked = f"--target-ratio {small['target_ratio']:g}"
            raise RecipeError(f"{asked}: says how many times smaller, as in --target-ratio 4")
        return cls(goal, small, lifted)

    @property
    def reads(self) -> list[str]:
        """The files that they name to be read."""
        return function_files(self.values.get("metric"))

    def goal(self, **more: Any) -> Goal | None:
        """What the answers must keep; None where the budget is lifted."""
        from onnxshrink.functions import load_metric
        from onnxshrink.goal import Goal

        if self.lifted:
            return None
        metric = self.values.get("metric")
        return Goal(**{**self.values, **more, "metric": load_metric(metric) if metric else None})


def finish(run: RunOptions, produce: Callable[[], Report]) -> None:
    """Print the report of a run whose result is written even where it misses its budget."""
    missed: BudgetMissed | None = None
    try:
        report = produce()
    except BudgetMissed as error:
        missed, report = error, error.report  # type: ignore[assignment]
    run.finish(report)
    if missed is not None:
        raise missed


def _measure(text: str) -> tuple[str, Any]:
    output, equals, kind = text.rpartition("=")
    if not equals:
        raise RecipeError(f"--measure takes OUTPUT=KIND, not {text!r}")
    return output, kind
