"""How much each group loses: one ratio, ratios by name, or whatever reaches a goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

from onnxshrink.channels import groups as grouping
from onnxshrink.channels.groups import Cost, Group
from onnxshrink.channels.plan import Plan, names_of, parameters_per_unit
from onnxshrink.graph.file.model import Model
from onnxshrink.kernels.importance import (
    Array,
    Indices,
    balanced_counts,
    choose_by_loss,
    choose_global,
    choose_local,
)

#: Largest share of a group that may go.
MOST = 0.95


@dataclass(frozen=True)
class Start:
    """What the first of several steps began with.

    Attributes:
        model: The model.
        sizes: Units of every group, by name.
        cost: What it cost.
    """

    model: Model
    sizes: Mapping[str, int]
    cost: Cost

    @classmethod
    def of(cls, plan: Plan) -> Start:
        """The start from which a plan was made."""
        sizes = {group.name: len(group) for group in plan.groups}
        return cls(plan.walk.model.clone(), sizes, grouping.cost(plan.walk))


@dataclass(frozen=True)
class Allocation:
    """How a ratio is spread over groups.

    Attributes:
        ratios: Ratios of some groups, by pattern of a name.
        everywhere: Whether units compete across groups; otherwise each loses the same share.
        losses: For groups by name, what the outputs lose with 0, 1, 2, ... of their units; where
            there are any, those go whose loss is the least for what they save.
        round_to: What lengths of axes are multiples of.
        minimum: Units that every group keeps.
        costs: What removing one unit of each group saves; by default its parameters.
        sizes: Units that groups had before the first of several steps, by name; what is chosen is
            relative to that, so that rounding does not stop small steps.
    """

    ratios: Mapping[str, float]
    everywhere: bool
    round_to: int
    minimum: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Array] = field(default_factory=dict)

    def choose(self, plan: Plan, ratio: float) -> Plan:
        """The plan that removes the least important units at a ratio."""
        free = [i for i, group in enumerate(plan.groups) if group.name not in plan.held]
        groups = [plan.groups[i] for i in free]
        scores = [plan.scores[i] for i in free]
        # Bonds are rounded together, below.
        granules = [group.granule(self.round_to) if group.bond < 0 else 1 for group in groups]
        own = [self._own_ratio(group) for group in groups]
        wanted = [
            (1 - (ratio if each is None else each)) * self.sizes.get(group.name, len(group))
            for each, group in zip(own, groups, strict=True)
        ]
        picked = choose_local(scores, wanted, granules, self.minimum)
        spread_out = self.everywhere or bool(self.losses)
        if spread_out:
            costs = [self.costs.get(g.name, parameters_per_unit(g)) for g in groups]
            before = sum(
                cost * self.sizes.get(group.name, len(group))
                for cost, group in zip(costs, groups, strict=True)
            )
            total = sum(cost * len(group) for cost, group in zip(costs, groups, strict=True))
            part = max(0.0, 1 - (1 - ratio) * before / total) if total else 0.0
            if self.losses:
                spread = self._least_lost(groups, scores, costs, part)
            else:
                spread = choose_global(scores, costs, part, granules, self.minimum)
            picked = [
                best if each is None else local
                for each, best, local in zip(own, spread, picked, strict=True)
            ]
        choice: list[Indices] = [np.empty(0, np.int64) for _ in plan.groups]
        asked = [0.0] * len(plan.groups)
        for index, units, keep, each in zip(free, picked, wanted, own, strict=True):
            choice[index] = units
            by_share = not spread_out or each is not None
            asked[index] = len(plan.groups[index]) - keep if by_share else len(units)
        return replace(plan, choice=self._balanced(plan, choice, asked))

    def _least_lost(
        self, groups: Sequence[Group], scores: Sequence[Array], costs: Sequence[float], part: float
    ) -> list[Indices]:
        """The lowest units of every group whose loss is known; of the others none."""
        known = [index for index, group in enumerate(groups) if group.name in self.losses]
        counts = choose_by_loss(
            [self.losses[groups[index].name] for index in known], [costs[i] for i in known], part,
            [groups[i].granule(self.round_to) if groups[i].bond < 0 else 1 for i in known],
            self.minimum,
        )  # fmt: skip
        chosen: list[Indices] = [np.empty(0, np.int64) for _ in groups]
        for index, count in zip(known, counts, strict=True):
            chosen[index] = np.sort(np.argsort(scores[index], kind="stable")[:count])
        return chosen

    def only(self, plan: Plan, index: int, share: float = 0.5) -> Plan:
        """The plan that removes a share of one group, and of those that must stay in balance."""
        group = plan.groups[index]
        choice: list[Indices] = [np.empty(0, np.int64) for _ in plan.groups]
        granule = [group.granule(self.round_to)]
        wanted = [(1 - share) * len(group)]
        own = choose_local([plan.scores[index]], wanted, granule, self.minimum)[0]
        choice[index] = own
        for other, each in enumerate(plan.groups):
            if group.bond >= 0 and each.bond == group.bond:
                count = len(own) * len(each) // len(group)
                choice[other] = np.sort(np.argsort(plan.scores[other], kind="stable")[:count])
        return replace(plan, choice=self._balanced(plan, choice, [len(each) for each in choice]))

    def savings(self, plan: Plan, measure: Callable[[Cost], float]) -> dict[str, float]:
        """What removing one unit of each group saves, on average over half of them."""
        before, saved = measure(grouping.cost(plan.walk)), {}
        for group, trial, gone in self.halves(plan):
            after = measure(grouping.cost(plan.walk, trial.removed)) if gone else before
            saved[group.name] = (before - after) / max(gone, 1)
        return saved

    def halves(self, plan: Plan) -> Iterator[tuple[Group, Plan, int]]:
        """For each group, the plan that removes half of it, and the units that go from its bond."""
        for index, group in enumerate(plan.groups):
            trial = self.only(plan, index)
            gone = sum(
                len(choice)
                for each, choice in zip(plan.groups, trial.choice, strict=True)
                if each is group or (group.bond >= 0 and each.bond == group.bond)
            )
            yield group, trial, gone

    def _balanced(self, plan: Plan, choice: list[Indices], asked: Sequence[float]) -> list[Indices]:
        """What comes next to a choice and takes as many channels from every group of convolutions.

        Args:
            plan: What there is to choose from.
            choice: The units that go, which is edited.
            asked: How many units of each group should go, before any rounding.
        """
        bonds = {group.bond for group in plan.groups if group.bond >= 0}
        for bond in sorted(bonds):
            own = [index for index, group in enumerate(plan.groups) if group.bond == bond]
            sizes = [len(plan.groups[index]) for index in own]
            free = not any(plan.groups[index].name in plan.held for index in own)
            share = sum(asked[index] for index in own) / sum(sizes) if free else 0.0
            counts = [0] * len(own)
            if share > 0:
                wanted = [share * size for size in sizes]
                parts = _parts(plan, own)
                counts = balanced_counts(sizes, wanted, parts, self.round_to).tolist()
            for index, count in zip(own, counts, strict=True):
                order = np.argsort(plan.scores[index], kind="stable")
                choice[index] = np.sort(order[:count])
        return choice

    def _own_ratio(self, group: Group) -> float | None:
        names = names_of(group)
        found = [r for p, r in self.ratios.items() if any(fnmatchcase(n, p) for n in names)]
        return float(found[-1]) if found else None

    def reach(
        self, plan: Plan, enough: Callable[[Plan], bool], trials: int = 10
    ) -> tuple[Plan, bool]:
        """The plan of the smallest ratio that is enough; that of the largest if none is.

        Args:
            plan: What there is to choose from.
            enough: Whether a plan will do.
            trials: How often to halve the range of ratios.

        Returns:
            The plan, and whether it is enough.
        """
        low, high = 0.0, MOST
        best = self.choose(plan, high)
        reached = False
        for _ in range(trials):
            middle = (low + high) / 2
            trial = self.choose(plan, middle)
            if enough(trial):
                best, high, reached = trial, middle, True
            else:
                low = middle
        return best, reached or enough(best)

    def reach_cost(
        self, plan: Plan, measure: Callable[[Cost], float], most: float
    ) -> tuple[Plan, bool]:
        """The plan that leaves at most this cost, and whether there is one."""

        def enough(trial: Plan) -> bool:
            return measure(grouping.cost(trial.walk, trial.removed)) <= most

        least = self.choose(plan, 0.0)  # what has ratios of its own may do
        return (least, True) if enough(least) else self.reach(plan, enough)


def _parts(plan: Plan, own: list[int]) -> list[Array]:
    """For each balanced axis, how many channels of each part go with a unit of each group."""
    atoms = plan.walk.atoms
    place = np.full(atoms.count, -1)
    for column, index in enumerate(own):
        place[plan.groups[index].atoms] = column
    sizes = np.array([len(plan.groups[index]) for index in own])
    axes = []
    for parts in plan.walk.balanced:
        columns = [place[atoms.incidence(part)[1]] for part in parts]
        counts = [np.bincount(each[each >= 0], minlength=len(own)) / sizes for each in columns]
        if np.any(counts):
            axes.append(np.array(counts))
    return axes
