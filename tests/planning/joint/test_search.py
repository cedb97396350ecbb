"""The joint search against every choice there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tenp_edge.planning.joint.search import Chosen, JointSearch
from tenp_edge.planning.joint.tables import Array, ExpertTable, OtherTable, Tables

WIDTHS, TYPES = (32, 64, 96), ("BIG", "MIDDLE", "SMALL")


def tables(seed: int = 0, experts: int = 2, layers: int = 1, weight: float = 1.0) -> Tables:
    """Random losses that fall with width and precision."""
    draw = np.random.default_rng(seed)
    sizes = np.outer(WIDTHS, (8.0, 4.0, 2.0))
    rounding = np.array([0.01, 0.1, 1.0])

    def typed(size: float) -> Array:
        kept = np.cumsum(draw.uniform(0, size, (experts, len(WIDTHS))), axis=1)
        return kept[:, :, None] * rounding

    def layer(number: int) -> ExpertTable:
        steps = draw.uniform(0, 1, (experts, len(WIDTHS)))
        cut = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
        cut = np.concatenate([cut[:, 1:], np.zeros((experts, 1))], axis=1)
        return ExpertTable(number, weight, cut, typed(0.5), typed(0.5), 2 * sizes, sizes)

    others = OtherTable(
        ("a", "b"), draw.uniform(0, 1, (2, 1)) * rounding, np.array([[80.0, 40, 20]] * 2)
    )
    return Tables(WIDTHS, TYPES, tuple(map(layer, range(layers))), others)


def emptiable(seed: int, experts: int = 2, layers: int = 1) -> Tables:
    """Of `tables`, with widths of 0 before the others."""
    given, draw = tables(seed, experts, layers), np.random.default_rng(seed)

    def one(table: ExpertTable) -> ExpertTable:
        cut = table.cut[:, :1] + draw.uniform(0, 0.3, (experts, 1))
        typed = (np.pad(losses, ((0, 0), (1, 0), (0, 0))) for losses in (table.gate_up, table.down))
        sizes = (np.pad(s, ((1, 0), (0, 0))) for s in (table.gate_up_bytes, table.down_bytes))
        return ExpertTable(table.layer, 1.0, np.hstack([cut, table.cut]), *typed, *sizes)

    return Tables((0, *WIDTHS), TYPES, tuple(map(one, given.experts)), given.others)


def every_choice(search: JointSearch, experts: int) -> list[Chosen]:
    widths = range(len(search.tables.widths))
    each = list(product(widths, range(3), range(3)))
    found = []
    for choices in product(each, repeat=experts):
        for other in product(range(3), repeat=2):
            width, gate_up, down = (np.array([column]) for column in zip(*choices, strict=True))
            found.append(search.priced(width, gate_up, down, np.array(other)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_nothing_within_the_bytes_is_much_better(seed: int) -> None:
    """On the lower hull it is the best there is; between its points one step may be missing."""
    search = JointSearch(tables(seed, experts=2))
    every = every_choice(search, 2)
    sizes = sorted({chosen.nbytes for chosen in every})
    for nbytes in sizes[:: max(1, len(sizes) // 20)]:
        found = search.within(nbytes)
        best = min((c.loss for c in every if c.nbytes <= nbytes), default=None)
        assert (found is None) == (best is None)
        if found is None:
            continue
        assert found.nbytes <= nbytes and best is not None and found.loss >= best - 1e-12
        exactly = min(c.loss for c in every if c.nbytes <= found.nbytes)
        assert found.loss <= 2 * exactly + 0.2


def test_an_expert_without_neurons_may_give_a_constant() -> None:
    """Where it takes off more loss than as many bytes do elsewhere."""
    given = emptiable(1, experts=6, layers=2)

    def one(table: ExpertTable) -> ExpertTable:
        cut = np.insert(table.cut, 1, table.cut[:, 0] * np.array([0.5, 1, 0.5, 1, 0.5, 1]), axis=1)
        typed = (np.repeat(x, [2, 1, 1, 1], axis=1) for x in (table.gate_up, table.down))
        sizes = [
            np.repeat(x, [2, 1, 1, 1], axis=0) for x in (table.gate_up_bytes, table.down_bytes)
        ]
        sizes[1][1] = 5.0
        return ExpertTable(table.layer, 1.0, cut, *typed, *sizes)

    both = Tables((0, 0, *WIDTHS), TYPES, tuple(map(one, given.experts)), given.others)
    assert both.bare == 2
    search = JointSearch(both)
    assert not (search.smallest.width == 1).any()
    found = search.within(3 * search.smallest.nbytes)
    assert found is not None and (found.width[:, ::2] == 1).any()
    assert not (found.width[:, 1::2] == 1).any() and (found.width > 1).any(axis=1).all()


@pytest.mark.parametrize("seed", range(3))
def test_an_expert_may_lose_all_neurons_but_not_all_of_a_layer(seed: int) -> None:
    search = JointSearch(emptiable(seed))
    every = [chosen for chosen in every_choice(search, 2) if chosen.width.any()]
    sizes = sorted({chosen.nbytes for chosen in every})
    assert search.smallest.nbytes == sizes[0]
    emptied = 0
    for nbytes in sizes[:: max(1, len(sizes) // 20)]:
        found = search.within(nbytes)
        assert found is not None and found.nbytes <= nbytes and found.width.any()
        exactly = min(c.loss for c in every if c.nbytes <= found.nbytes)
        assert exactly - 1e-12 <= found.loss <= 2 * exactly + 0.2
        emptied += not found.width.all()
    assert emptied > 2


def test_in_every_layer_one_expert_stays() -> None:
    search = JointSearch(emptiable(5, experts=6, layers=4))
    for nbytes in np.linspace(search.smallest.nbytes, 4 * search.smallest.nbytes, 9):
        found = search.within(nbytes)
        assert found is not None and found.width.any(axis=1).all()
    assert not search.smallest.width.all() and (search.smallest.width > 0).sum() == 4


def test_what_a_large_matrix_leaves_over_goes_to_the_experts() -> None:
    given = tables(6, experts=4, layers=2)
    large = OtherTable(("a",), np.array([[0.01, 0.1, 1.0]]), np.array([[9000.0, 4000, 2000]]))
    search = JointSearch(Tables(WIDTHS, TYPES, given.experts, large))
    largest = search.within(1e9)
    assert largest is not None
    for nbytes in np.linspace(search.smallest.nbytes + 1500, largest.nbytes - 500, 25):
        found = search.within(nbytes)
        assert found is not None
        whole = (found.width == 2).all() and not found.gate_up.any() and not found.down.any()
        assert whole or 0 <= nbytes - found.nbytes < 1000


def test_more_bytes_never_cost_more() -> None:
    search = JointSearch(tables(4, experts=6, layers=3))
    smallest, largest = search.smallest, search.within(1e9)
    assert largest is not None
    before = np.inf
    for nbytes in np.linspace(smallest.nbytes, largest.nbytes, 30):
        found = search.within(nbytes)
        assert found is not None and found.nbytes <= nbytes
        assert found.loss <= before * 1.05 + 1e-9
        before = found.loss
    assert before == largest.loss


def test_all_is_kept_where_there_is_room() -> None:
    found = JointSearch(tables(1)).within(1e9)
    assert found is not None
    assert (found.width == 2).all() and (found.cut_loss, found.gate_up.max()) == (0, 0)
    assert not found.down.any() and not found.other.any()


def test_nothing_fits_into_too_little() -> None:
    search = JointSearch(tables(1))
    assert search.within(search.smallest.nbytes - 1) is None
    found = search.within(search.smallest.nbytes)
    assert found is not None and found.nbytes == search.smallest.nbytes


def test_stacked_experts_agree() -> None:
    search = JointSearch(tables(2, experts=5, layers=2), one_type=True)
    free = JointSearch(tables(2, experts=5, layers=2))
    for nbytes in np.linspace(search.smallest.nbytes, 12_000, 7):
        found, own = search.within(nbytes), free.within(nbytes)
        assert found is not None and own is not None and own.loss <= found.loss * 1.05
        assert len(np.unique(found.width)) == 1
        for row in (*found.gate_up, *found.down):
            assert len(np.unique(row)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_few_pairs_of_a_width_and_a_type(seed: int) -> None:
    """Matrices of an expert agree; with few pairs hardly more is lost than with all of them."""
    given = tables(seed, experts=12, layers=2)
    every, three = (JointSearch(given, alike=True, most=most) for most in (None, 3))
    for nbytes in np.linspace(three.smallest.nbytes, 20_000, 9):
        free, found = every.within(nbytes), three.within(nbytes)
        assert free is not None and found is not None and found.nbytes <= nbytes
        assert free.loss * 0.9 <= found.loss <= free.loss * 1.5
        for chosen, most in ((free, 9), (found, 3)):
            assert (chosen.gate_up == chosen.down).all()
            pairs = zip(chosen.width.flat, chosen.gate_up.flat, strict=True)
            assert len(set(pairs)) <= most
    assert three.within(three.smallest.nbytes - 1) is None
    assert not three.largest.gate_up.any()


@pytest.mark.parametrize("seed", range(3))
def test_one_pair_for_all_is_the_best_that_fits(seed: int) -> None:
    given = tables(seed, experts=12, layers=2)
    every, one = (JointSearch(given, alike=True, most=most) for most in (9, 1))
    for nbytes in np.linspace(one.smallest.nbytes, 20_000, 9):
        free, found = every.within(nbytes), one.within(nbytes)
        assert free is not None and found is not None and found.nbytes <= nbytes
        assert len(np.unique(found.width)) == len(np.unique(found.gate_up)) == 1
        assert (found.gate_up == found.down).all() and free.loss * 0.9 <= found.loss
    assert one.within(one.smallest.nbytes - 1) is None


def test_one_pair_is_all_there_is() -> None:
    """As of experts as wide as a block, in one type."""
    one = tables()
    experts = tuple(
        replace(
            table,
            cut=table.cut[:, -1:],
            gate_up=table.gate_up[:, -1:, :1],
            down=table.down[:, -1:, :1],
            gate_up_bytes=table.gate_up_bytes[-1:, :1],
            down_bytes=table.down_bytes[-1:, :1],
        )
        for table in one.experts
    )
    search = JointSearch(replace(one, widths=WIDTHS[-1:], experts=experts), alike=True, most=8)
    found = search.within(1e9)

    assert found is not None
    assert not found.width.any() and not found.gate_up.any() and not found.down.any()


def test_a_layer_that_counts_more_keeps_more() -> None:
    light, heavy = tables(3, experts=4), tables(3, experts=4, weight=30.0)
    both = Tables(WIDTHS, TYPES, (*light.experts, *heavy.experts), light.others)
    search = JointSearch(both)
    found = search.within(3 * search.smallest.nbytes)
    assert found is not None
    assert (found.width[1] >= found.width[0]).all() and found.width[1].sum() > found.width[0].sum()
