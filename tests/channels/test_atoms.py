from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxshrink.channels.atoms import Atoms


def _removed(atoms: Atoms, *gone: int) -> np.ndarray:
    flags = np.zeros(atoms.count, bool)
    flags[atoms.find(np.array(gone, np.int64))] = True
    return flags


def test_joined_atoms_go_together():
    atoms = Atoms()
    a, b, c = atoms.fresh(4), atoms.fresh(4), atoms.fresh(4)
    atoms.join(a, b)
    atoms.join(b[::-1], c)
    flags = _removed(atoms, int(a[0]))
    assert atoms.kept(b, flags).tolist() == [False, True, True, True]
    assert atoms.kept(c, flags).tolist() == [True, True, True, False]


def test_many_partners_of_one_atom_are_all_joined():
    atoms = Atoms()
    a, b = atoms.fresh(1), atoms.fresh(50)
    atoms.join(np.repeat(a, 50), b)
    assert len(np.unique(atoms.find(np.concatenate([a, b])))) == 1


def test_frozen_atoms_know_why_and_freeze_their_partners():
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(3)
    atoms.freeze(a[:1], "first")
    atoms.freeze(a[:1], "second")
    atoms.join(a, b)
    assert atoms.is_frozen(b).tolist() == [True, False, False]
    assert atoms.reason(int(b[0])) == "first"
    assert atoms.reason(int(b[1])) == ""


def test_product_is_kept_while_all_factors_are():
    atoms = Atoms()
    heads, sizes = atoms.fresh(2), atoms.fresh(3)
    flat = atoms.fresh(6)
    product = atoms.product([heads.repeat(3), np.tile(sizes, 2)])
    atoms.join(flat, product)
    assert atoms.kept(flat, _removed(atoms, int(heads[1]))).tolist() == [True] * 3 + [False] * 3
    assert atoms.kept(flat, _removed(atoms, int(sizes[0]))).tolist() == [False, True, True] * 2


def test_equal_products_tie_their_factors_in_order():
    atoms = Atoms()
    a, b, c, d = (atoms.fresh(2) for _ in range(4))
    one = atoms.product([a.repeat(2), np.tile(b, 2)])
    other = atoms.product([c.repeat(2), np.tile(d, 2)])
    atoms.join(one, other)
    assert np.array_equal(atoms.find(a), atoms.find(c))
    assert np.array_equal(atoms.find(b), atoms.find(d))
    assert not np.array_equal(atoms.find(a), atoms.find(b))


def test_freezing_a_product_freezes_its_factors():
    atoms = Atoms()
    a, b = atoms.fresh(2), atoms.fresh(2)
    product = atoms.product([a, b])
    atoms.freeze(product[:1], "why")
    assert atoms.is_frozen(a).tolist() == [True, False]
    assert atoms.is_frozen(product).tolist() == [True, False]
    assert atoms.reason(int(product[0])) == "why"


def test_a_frozen_factor_drops_out():
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(3, "fixed")
    assert np.array_equal(atoms.product([a, b]), a)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "product", "freeze"]), st.integers(0, 99), st.integers(0, 99)
    ),
    max_size=25,
)


@given(_STEPS, st.integers(0, 2**12 - 1))
def test_every_relation_holds_for_every_choice(steps, bits):
    """Whatever goes: joined atoms agree, products are conjunctions, frozen atoms stay."""
    atoms = Atoms()
    known = atoms.fresh(12).tolist()
    joined, products, frozen = [], [], []
    for kind, i, j in steps:
        a, b = known[i % len(known)], known[j % len(known)]
        if kind == "join":
            atoms.join(np.array([a]), np.array([b]))
            joined.append((a, b))
        elif kind == "freeze":
            atoms.freeze(np.array([a]), "frozen")
            frozen.append(a)
        else:
            made = int(atoms.product([np.array([a]), np.array([b])])[0])
            products.append((made, a, b))
            known.append(made)
    flags = np.zeros(atoms.count, bool)
    for index in range(12):
        if bits >> index & 1:
            flags[list(atoms.factors(index))] = True
    every = np.arange(atoms.count)
    kept = atoms.kept(every, flags)
    assert all(kept[a] == kept[b] for a, b in joined)
    assert all(kept[made] == (kept[a] and kept[b]) for made, a, b in products)
    assert all(kept[a] for a in frozen)
    positions, factors = atoms.incidence(every)
    assert set(positions[flags[factors]].tolist()) == set(np.flatnonzero(~kept).tolist())
