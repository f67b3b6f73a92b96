"""A study: all trials of a search in a database, so that none is lost when its process is.

It knows what it is a study of, so that trials of another model, of other inputs or for another goal
are never mixed with them.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxshrink.errors import RecipeError
from onnxshrink.search.evolution import genes
from onnxshrink.search.evolution.evaluating import Evaluation

if TYPE_CHECKING:
    from optuna import Study as Stored
    from optuna.trial import FrozenTrial, Trial

POPULATION = 20
_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")
_WHAT = {"model": "another model", "data": "other inputs", "goal": "another goal"}
_SEEDED = "start"


def shown(text: str) -> str:
    """A text with the passwords of URLs blotted out."""
    return _PASSWORD.sub(r"\1***@", text)


class Study:
    """The trials of one search.

    Args:
        url: The database, as SQLAlchemy names it.
        name: Of the study in it.
        of: What it is a study of: digests by ``model``, ``data`` and ``goal``.
        objectives: How many values a trial has: bytes, loss and perhaps latency.
        seed: For the choice of genes.

    Raises:
        RecipeError: Optuna is missing, the database cannot be opened, or holds a study of
            something else under this name.
    """

    def __init__(
        self, url: str, name: str, of: Mapping[str, str], objectives: int, seed: int
    ):  # fmt: skip
        try:
            import optuna
            import sqlalchemy.exc
        except ImportError as error:
            raise RecipeError("search needs optuna: pip install 'onnxshrink[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Another run with the same seed must not begin with the genes of the last one.
        try:
            storage = optuna.storages.RDBStorage(url)
            known = [one.study_name for one in optuna.get_all_study_summaries(storage)]
            done = 0
            if name in known:
                done = len(optuna.load_study(study_name=name, storage=storage).trials)
            sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed + done)
            self._stored: Stored = optuna.create_study(
                storage=storage, study_name=name, sampler=sampler, load_if_exists=True,
                directions=["minimize"] * objectives,
            )  # fmt: skip
            self._check(f"{shown(url)}: study {name!r}", of)
        except (
            sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError,
        ) as error:  # fmt: skip
            first = shown(str(error).partition("\n")[0])
            raise RecipeError(f"{shown(url)}: cannot be used as a database: {first}") from error
        self._objectives = objectives
        self._space = genes.space()
        self._revive()

    def _check(self, where: str, of: Mapping[str, str]) -> None:
        known = self._stored.user_attrs
        for key, digest in of.items():
            if known.get(key, digest) != digest:
                raise RecipeError(
                    f"{where} is of {_WHAT[key]} than this; name another folder or --study"
                )
            self._stored.set_user_attr(key, digest)

    def _revive(self) -> None:
        """Put trials whose process died back in line."""
        from optuna.trial import TrialState

        for trial in self._stored.get_trials(states=(TrialState.RUNNING,)):
            if not _lives(str(trial.user_attrs.get("owner", ""))):
                self._stored.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    self._stored.enqueue_trial(trial.params)

    # ---- where it starts from

    @property
    def start(self) -> str | None:
        """The recipe that the Lagrangian search took, as YAML; None before there is one."""
        return self._stored.user_attrs.get(_SEEDED)

    def begin(
        self, start: str, seeds: Sequence[tuple[Mapping[str, Any], Evaluation]],
        near: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        """Note what is known before the first trial.

        Args:
            start: The recipe to begin with.
            seeds: Genes, and what came of them.
            near: Genes to be tried before any others.
        """
        for known, found in seeds:
            self._stored.enqueue_trial(dict(known), user_attrs={"known": _attributes(found)})
        for known in near:
            self._stored.enqueue_trial(dict(known))
        self._stored.set_user_attr(_SEEDED, start)

    # ---- trials

    def ask(self) -> tuple[Trial, Evaluation | None]:
        """A recipe to evaluate, and what came of it, where that is known already."""
        trial = self._stored.ask(self._space)
        trial.set_user_attr("owner", f"{socket.gethostname()}:{os.getpid()}")
        known = trial.user_attrs.get("known") or self._twin(trial)
        return trial, None if known is None else Evaluation(**known)

    def _twin(self, trial: Trial) -> dict[str, Any] | None:
        steps = genes.steps_of(trial.params)
        for other, found in self.finished():
            if genes.steps_of(other.params) == steps:
                return _attributes(found)
        return None

    def tell(self, trial: Trial, found: Evaluation) -> None:
        """Keep what came of a recipe: a failure with its reason."""
        from optuna.trial import TrialState

        if found.why_not:
            trial.set_user_attr("why_not", found.why_not)
            self._stored.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr("found", _attributes(found))
        values = [found.nbytes, found.seen, found.latency or 0.0]
        self._stored.tell(trial, values[: self._objectives])

    def drop(self, trial: Trial) -> None:
        """A recipe was not evaluated to the end; it comes back in line."""
        from optuna.trial import TrialState

        self._stored.tell(trial, state=TrialState.FAIL)
        self._stored.enqueue_trial(trial.params)

    def finished(self) -> Iterator[tuple[FrozenTrial, Evaluation]]:
        """All that were evaluated, with what came of them."""
        from optuna.trial import TrialState

        for trial in self._stored.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            yield trial, Evaluation(**trial.user_attrs["found"])

    @property
    def failures(self) -> list[str]:
        """Why those failed that did; those that nobody evaluated to the end aside."""
        from optuna.trial import TrialState

        failed = self._stored.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return [str(one.user_attrs["why_not"]) for one in failed if "why_not" in one.user_attrs]

    @property
    def count(self) -> int:
        """How many trials ended, well or not; those that were known at the start aside."""
        done = [trial for trial, _ in self.finished() if "known" not in trial.user_attrs]
        return len(done) + len(self.failures)


def _attributes(found: Evaluation) -> dict[str, Any]:
    return {
        "nbytes": found.nbytes, "seen": found.seen, "error": found.error, "latency": found.latency,
    }  # fmt: skip


def _lives(owner: str) -> bool:
    """Whether the process of a trial is there; of other machines nobody knows, so it may be."""
    host, _, number = owner.rpartition(":")
    if host and host != socket.gethostname():
        return True
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(number) != os.getpid()
