"""Atoms: what stands for one index of one axis, and what it takes for it to be removed.

Atoms live in a union-find, kept in arrays so that whole axes are joined at once: joined atoms are
removed together. A frozen atom stays, and knows why. An atom may also be *defined* as the product
of others: it is kept as long as all its factors are. That is how a Reshape of ``[heads * size]``
to ``[heads, size]`` is said exactly: index ``(h, d)`` is the product of head ``h`` and dimension
``d``, either of which may go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


class Atoms:
    """All atoms of one graph."""

    def __init__(self) -> None:
        self.count = 0
        self._parent = np.zeros(1024, np.int64)
        self._frozen = np.zeros(1024, np.int32)  # index of the reason, 0 where free
        self._defined = np.zeros(1024, bool)
        self._factors: dict[int, tuple[int, ...]] = {}
        self._products: dict[tuple[int, ...], int] = {}
        self._reasons: list[str] = [""]
        self._numbers: dict[str, int] = {}
        # A search asks for the same axes thousands of times, when nothing is joined any more.
        self._incidence: dict[bytes, tuple[Labels, Labels]] = {}

    def fresh(self, count: int, frozen: str = "") -> Labels:
        """New atoms, each on its own; frozen for a reason, if one is given."""
        start, self.count = self.count, self.count + count
        if self.count > len(self._parent):
            size = max(self.count, 2 * len(self._parent))
            self._parent = np.concatenate([self._parent[:start], np.zeros(size - start, np.int64)])
            for name in ("_frozen", "_defined"):
                array = getattr(self, name)
                grown = np.concatenate([array[:start], np.zeros(size - start, array.dtype)])
                setattr(self, name, grown)
        made = np.arange(start, self.count)
        self._parent[start : self.count] = made
        if frozen:
            self._frozen[start : self.count] = self._number(frozen)
        return made

    def find(self, labels: Labels) -> Labels:
        """The representative of each atom's class."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    # ------------------------------------------------------------------ joining

    def join(self, a: Labels, b: Labels) -> None:
        """Tie atoms pairwise: each pair is removed together or not at all."""
        while True:
            one, other = self.find(a), self.find(b)
            apart = one != other
            if not apart.any():
                return
            self._incidence.clear()
            simple = apart & ~self._defined[one] & ~self._defined[other]
            if not simple.any():
                break
            low = np.minimum(one, other)[simple]
            high = np.maximum(one, other)[simple]
            reasons = np.maximum(self._frozen[low], self._frozen[high])
            np.minimum.at(self._parent, high, low)
            # Of several partners one was taken; the next turn joins the others.
            np.maximum.at(self._frozen, self.find(low), reasons)
        pairs = {(int(x), int(y)) for x, y in zip(one[apart], other[apart], strict=True)}
        for x, y in sorted(pairs):
            self._join_products(x, y)

    def _join_products(self, x: int, y: int) -> None:
        """Tie two atoms of which at least one may be a product."""
        x, y = self._root(x), self._root(y)
        if x == y:
            return
        self._incidence.clear()
        a, b = self.factors(x), self.factors(y)
        if not a or not b:  # one of them always stays, so all factors of the other must
            reason = self.reason(x if not a else y)
            for factor in a or b:
                self.freeze(np.array([factor]), reason)
            return
        if len(a) == len(b):
            # Products of equal factors are equal; no finer way would say so for every pair.
            if a != b:
                self.join(np.array(a), np.array(b))
            elif self._defined[x] and self._defined[y]:
                self._parent[max(x, y)] = min(x, y)
                self._factors[min(x, y)] = a  # one may have been a factor of the other
            return
        (short, long) = (a, b) if len(a) < len(b) else (b, a)
        if len(short) == 1 and short[0] not in long:
            self._define(short[0], long)
        else:
            every = np.array(short + long)
            self.join(every[1:], np.broadcast_to(every[:1], len(every) - 1))

    def _define(self, atom: int, factors: tuple[int, ...]) -> None:
        self._factors[atom] = factors
        self._defined[atom] = True

    def product(self, parts: Sequence[Labels]) -> Labels:
        """Atoms that stay only where the atoms of all parts stay.

        Args:
            parts: Arrays of one length; index ``i`` of the result is the product of their ``i``.
        """
        free = [part for part in parts if not self.is_frozen(part).all()]
        if not free:
            return parts[0]
        if len(free) == 1:
            return free[0]
        roots = [self.find(part) for part in free]
        result = np.empty(len(roots[0]), np.int64)
        for index, atoms in enumerate(zip(*(part.tolist() for part in roots), strict=True)):
            factors = tuple(dict.fromkeys(f for atom in atoms for f in self.factors(atom)))
            if len(factors) == 1:
                result[index] = factors[0]
                continue
            if not factors:
                result[index] = atoms[0]
                continue
            known = self._products.get(factors)
            if known is None:
                known = self._products[factors] = int(self.fresh(1)[0])
                self._define(known, factors)
            result[index] = known
        return result

    # ----------------------------------------------------------------- freezing

    def freeze(self, labels: Labels, reason: str) -> None:
        """Make atoms stay; what is already frozen keeps its first reason."""
        self._incidence.clear()
        roots = np.unique(self.find(labels))
        number = self._number(reason)
        for root in roots[self._defined[roots]].tolist():
            self.freeze(np.array(self.factors(root), np.int64), reason)
        plain = roots[~self._defined[roots]]
        self._frozen[plain] = np.where(self._frozen[plain] == 0, number, self._frozen[plain])

    def is_frozen(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Which atoms always stay."""
        roots = self.find(labels)
        frozen: npt.NDArray[np.bool_] = self._frozen[roots] != 0
        for index in np.flatnonzero(self._defined[roots]).tolist():
            frozen[index] = not self.factors(int(roots[index]))
        return frozen

    def reason(self, atom: int) -> str:
        """Why an atom stays, or an empty text."""
        root = self._root(atom)
        if not self._defined[root]:
            return self._reasons[int(self._frozen[root])]
        return next(filter(None, (self.reason(factor) for factor in self._factors[root])), "")

    def factors(self, atom: int) -> tuple[int, ...]:
        """The free undefined atoms whose presence keeps an atom; none when it is frozen."""
        root = self._root(atom)
        if not self._defined[root]:
            return () if self._frozen[root] else (root,)
        flat = (f for factor in self._factors[root] for f in self.factors(factor))
        return tuple(dict.fromkeys(flat))

    def incidence(self, labels: Labels) -> tuple[Labels, Labels]:
        """Which free atoms decide over which positions.

        Returns:
            Positions in ``labels``, and the free atom for each; a position with several factors
            appears once for each of them. Both are kept for the next who asks: read only.
        """
        if (known := self._incidence.get(labels.tobytes())) is not None:
            return known
        roots = self.find(labels)
        defined = self._defined[roots]
        plain = np.flatnonzero(~defined & (self._frozen[roots] == 0))
        positions, atoms = [plain], [roots[plain]]
        for index in np.flatnonzero(defined).tolist():
            factors = self.factors(int(roots[index]))
            positions.append(np.full(len(factors), index))
            atoms.append(np.array(factors, np.int64))
        found = np.concatenate(positions), np.concatenate(atoms)
        for array in found:
            array.flags.writeable = False
        self._incidence[labels.tobytes()] = found
        return found

    def kept(self, labels: Labels, removed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which positions stay when the atoms marked in ``removed`` go."""
        positions, atoms = self.incidence(labels)
        stay = np.ones(len(labels), bool)
        stay[positions[removed[atoms]]] = False
        return stay

    def _root(self, atom: int) -> int:
        while (above := int(self._parent[atom])) != atom:
            atom = above
        return atom

    def _number(self, reason: str) -> int:
        if reason not in self._numbers:
            self._numbers[reason] = len(self._reasons)
            self._reasons.append(reason)
        return self._numbers[reason]
