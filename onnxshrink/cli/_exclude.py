"""Options of the passes that select weights: find out which of them to leave alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshrink.cli._budget import goal_option
from onnxshrink.cli._values import decorated, function_files
from onnxshrink.errors import RecipeError

if TYPE_CHECKING:
    from onnxshrink.api import Options
    from onnxshrink.pipeline import Pass
    from onnxshrink.report import Report

F = TypeVar("F", bound=Callable[..., Any])

_GOALS = ("min_agreement", "max_drop", "metric", "recipe_out")


def exclude_options(command: F) -> F:
    """What the answers must keep, and where to write how."""
    return decorated(
        command,
        (
            click.option(
                "--auto-exclude", is_flag=True,
                help="Leave the fewest weights alone that keep --min-agreement, --max-drop or "
                "--max-error on the calibration inputs; else likeness and top-1 agreement >= 0.99.",
            ),
            goal_option("--min-agreement", "--auto-exclude"),
            goal_option("--max-drop", "--auto-exclude"),
            goal_option("--metric", "--max-drop"),
            click.option(
                "--recipe-out", metavar="FILE",
                help="With --auto-exclude: write the step found, for 'apply'.",
            ),
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Exclusion:
    """The values of these options.

    Attributes:
        wanted: Whether ``--auto-exclude`` was given.
        goals: The others.
    """

    wanted: bool
    goals: dict[str, Any]

    @classmethod
    def take(cls, values: dict[str, Any]) -> Exclusion:
        """Take the values out of a command's.

        Raises:
            RecipeError: Some of them have no meaning without the others.
        """
        wanted = values.pop("auto_exclude", False)
        goals = {name: values.pop(name, None) for name in _GOALS}
        given = [name for name, value in goals.items() if value is not None]
        if given and not wanted:
            raise RecipeError(f"--{given[0].replace('_', '-')} goes with --auto-exclude")
        if goals["metric"] is not None and goals["max_drop"] is None:
            raise RecipeError("--metric goes with --max-drop")
        return cls(wanted, goals)

    @property
    def reads(self) -> list[str]:
        """The files that they name to be read."""
        return function_files(self.goals["metric"])

    def run(self, step: Pass, source: str, out: str, options: Options) -> Report:
        """Apply the step without the weights that would keep it from the goal."""
        from onnxshrink import api
        from onnxshrink.functions import load_metric
        from onnxshrink.goal import Goal

        metric = self.goals["metric"]
        goal = Goal(
            min_agreement=self.goals["min_agreement"], max_drop=self.goals["max_drop"],
            max_error=step.max_error, metric=load_metric(metric) if metric else None,
        )  # fmt: skip
        recipe_out = self.goals["recipe_out"]
        return api.apply_excluding(step, source, out, options, goal=goal, recipe_out=recipe_out)
