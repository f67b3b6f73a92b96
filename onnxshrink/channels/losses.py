"""How much the outputs lose with some channels of each group: what prune-channels shares out by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxshrink.progress import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from onnxshrink.channels.plan import Plan
    from onnxshrink.channels.refit import Removal
    from onnxshrink.channels.shares import Allocation

_SHARES = (0.15, 0.5)  # of a group; what lies between and beyond follows the scores
_PROBES = 8  # inputs, of those that were held out


class Losses:
    """Measures what plans take from the outputs, on inputs that nothing is fitted to.

    Args:
        whole: What would carry out a plan.
    """

    def __init__(self, whole: Removal):
        self._whole = whole
        feeds, split = whole.ctx.feeds, whole.ctx.split
        held = split.of(feeds, split.held)[:_PROBES]
        self._wanted = whole.ctx.reference(whole.plan.walk.model, held or feeds[:1])

    def of(self, plan: Plan) -> float:
        """The squared relative error of the outputs, with what is removed made up for.

        Of probabilities too: few inputs are held out, and their divergence would depend on
        the one row that goes most wrong.
        """
        trial = replace(self._whole, plan=plan).trial()
        return self._wanted.distance(trial) ** 2

    def curves(self, plan: Plan, allocation: Allocation) -> Mapping[str, np.ndarray]:
        """For each group by name, what is lost with 0, 1, 2, ... of its units.

        Groups of which nothing can be removed, or nothing sensible is left, are not among them.
        """
        import numpy as np

        from onnxshrink.kernels.importance import loss_curve

        found: dict[str, np.ndarray] = {}
        groups = counted(self._whole.ctx.progress, "losses of groups", plan.groups)
        for index, group in enumerate(groups):
            bond = [g.bond >= 0 and g.bond == group.bond for g in plan.groups]
            own = [i for i, tied in enumerate(bond) if tied or i == index]
            if own[0] < index or any(plan.groups[i].name in plan.held for i in own):
                continue
            seen: dict[int, float] = {}
            for share in _SHARES:
                trial = allocation.only(plan, index, share)
                gone = sum(len(trial.choice[i]) for i in own)
                if trial.removed.any() and gone not in seen:
                    seen[gone] = self.of(trial)
            if not seen or not np.isfinite(list(seen.values())).all():
                continue
            counts = sorted(seen)
            total = sum(len(plan.groups[i]) for i in own)
            for i in own:  # of several that go together, each has its part of the loss
                part = len(plan.groups[i]) / total
                found[plan.groups[i].name] = loss_curve(
                    plan.scores[i], [max(1, round(n * part)) for n in counts],
                    [seen[n] * part for n in counts],
                )  # fmt: skip
        return found
