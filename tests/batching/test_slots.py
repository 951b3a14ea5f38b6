"""The books of the KV cache: checked against a plain model of cells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lamella.batching.slots import CELLS_AT_ONCE, SlotTable, runs

WORD = st.lists(st.integers(0, 1), min_size=1, max_size=6)


@given(st.data())
def test_cells_are_counted_once_however_they_are_shared(data: st.DataObject) -> None:
    """Copies, cuts and extensions in any order, beside a list of cell objects for each slot."""
    table = SlotTable(4)
    cells: list[list[object]] = [[] for _ in table.slots]
    for _ in range(data.draw(st.integers(1, 25))):
        slot = table.slots[data.draw(st.integers(0, 3))]
        match data.draw(st.sampled_from(["extend", "cut", "copy"])):
            case "extend":
                tokens = data.draw(WORD)
                table.extend(slot, tokens, "v", 1)
                cells[slot.id] += [object() for _ in tokens]
            case "cut":
                n = data.draw(st.integers(0, len(slot.tokens)))
                table.cut(slot, n)
                del cells[slot.id][n:]
            case "copy":
                source = table.slots[data.draw(st.integers(0, 3))]
                if source is not slot:
                    n = data.draw(st.integers(0, len(source.tokens)))
                    table.cut(slot, 0)
                    table.copy(source, slot, n)
                    cells[slot.id] = cells[source.id][:n]
        assert table.cells_used == len({id(c) for held in cells for c in held})
        assert [len(s.tokens) for s in table.slots] == [len(held) for held in cells]


def test_the_next_turn_of_a_chat_takes_its_slot_over() -> None:
    table = SlotTable(3)
    table.extend(table.slots[1], [1, 2, 3, 4], "v", 1)
    place = table.find_place([1, 2, 3, 4, 5, 6])
    assert place is not None
    assert (place.slot.id, place.source, place.n_shared) == (1, None, 4)


def test_the_last_token_is_always_computed() -> None:
    table = SlotTable(2)
    table.extend(table.slots[0], [1, 2, 3], "v", 1)
    place = table.find_place([1, 2, 3])
    assert place is not None
    assert place.n_shared == 2


def test_a_long_chat_is_not_lost_to_one_that_shares_its_beginning() -> None:
    table = SlotTable(3)
    table.extend(table.slots[0], [1] * 10 + [2] * 90, "v", 1)
    place = table.find_place([1] * 10 + [3] * 5)
    assert place is not None
    assert place.slot.id != 0
    assert (place.source, place.n_shared) == (table.slots[0], 10)


def test_a_running_request_lends_its_beginning() -> None:
    table = SlotTable(2)
    table.extend(table.slots[0], [1, 2, 3, 4], "v", 1)
    table.slots[0].owner = 7
    place = table.find_place([1, 2, 3, 9])
    assert place is not None
    assert (place.slot.id, place.source, place.n_shared) == (1, table.slots[0], 3)


def test_cells_of_another_variant_serve_only_requests_without_a_wish() -> None:
    table = SlotTable(2)
    table.extend(table.slots[0], [1, 2], "small", 1)
    table.extend(table.slots[0], [3, 4], "large", 1)
    assert table.shared_with_kept([1, 2, 3, 4, 5], None) == 4
    assert table.shared_with_kept([1, 2, 3, 4, 5], "large") == 0


def test_recurrent_models_share_whole_sequences_only() -> None:
    table = SlotTable(2, can_share_parts=False)
    table.extend(table.slots[0], [1, 2, 3], "v", 1)
    assert table.shared_with_kept([1, 2, 4, 5], None) == 0
    assert table.shared_with_kept([1, 2, 3], None) == 0
    place = table.find_place([1, 2, 3, 4])
    assert place is not None
    assert (place.slot.id, place.source, place.n_shared) == (0, None, 3)


def test_no_place_where_all_slots_run() -> None:
    table = SlotTable(1)
    table.slots[0].owner = 1
    assert table.find_place([1, 2]) is None


def test_the_least_recently_used_slot_gives_way() -> None:
    table = SlotTable(2)
    table.extend(table.slots[0], [1], "v", 5)
    table.extend(table.slots[1], [2], "v", 4)
    assert [s.id for s in table.kept] == [1, 0]
    place = table.find_place([9, 9])
    assert place is not None
    assert place.slot.id == 1


@given(st.sets(st.integers(0, 11), min_size=1, max_size=12))
def test_running_slots_come_together_in_few_exchanges(owned: set[int]) -> None:
    table = SlotTable(12, has_shared_cells=False)
    for slot in table.slots:
        slot.tokens = [slot.id]
        slot.owner = slot.id if slot.id in owned else None
    n_exchanges = 0
    while pair := table.out_of_place():
        running, free = pair
        assert running.owner is not None
        assert free.owner is None
        table.exchange(running, free)
        n_exchanges += 1
    together = [s.id for s in table.slots if s.owner is not None]
    assert together == list(range(together[0], together[0] + len(owned)))
    assert n_exchanges < len(owned)
    assert [s.id for s in table.slots] == list(range(12))


@given(st.sets(st.integers(0, 7), max_size=7))
def test_a_new_request_goes_beside_those_that_run(owned: set[int]) -> None:
    table = SlotTable(8, has_shared_cells=False)
    for number in owned:
        table.slots[number].owner = number
    place = table.find_place([1, 2, 3])
    assert place is not None
    assert len(runs({*owned, place.slot.id})) <= max(1, len(runs(owned)))


def test_slots_with_shared_cells_stay_where_they_are() -> None:
    table = SlotTable(3)
    table.slots[0].owner = table.slots[2].owner = 1
    assert table.out_of_place() is None


def test_separate_cells_are_copied_only_where_that_is_sooner_than_computing() -> None:
    for n_shared, n_kept, is_copied in [(15, 100, False), (16, 100, True), (16, 1024, True), (16, 1025, False)]:
        table = SlotTable(3, has_shared_cells=False)
        table.extend(table.slots[0], [1] * n_shared + [2] * (n_kept - n_shared), "v", 1)
        place = table.find_place([1] * n_shared + [3] * 5)
        assert place is not None
        assert (place.source is table.slots[0], place.n_shared) == (is_copied, n_shared if is_copied else 0)
        assert place.slot is not table.slots[0]


def test_what_another_slot_holds_too_counts_if_the_same_variants_computed_it() -> None:
    table = SlotTable(3)
    first, second, third = table.slots
    table.extend(first, [1, 2, 3, 4], "v", 1)
    table.extend(second, [1, 2, 3, 9, 9], "v", 1)
    table.extend(third, [1, 2, 3, 4], "w", 1)
    assert table.shared_with_others(first) == 3
    assert table.shared_with_others(third) == 0


@given(st.data(), st.booleans())
def test_rows_to_fill_with_are_of_free_slots_beside_the_running_ones(data: st.DataObject, shared: bool) -> None:
    table = SlotTable(8, has_shared_cells=shared)
    for slot in table.slots:
        table.extend(slot, [1] * data.draw(st.sampled_from([0, 7, 200, 255, 256, 600])), "v", 1)
    first = data.draw(st.integers(0, 6))
    running = table.slots[first : first + data.draw(st.integers(1, 8 - first))]
    for slot in running:
        slot.owner = 1
    n_rows = data.draw(st.integers(1, 4))
    found = table.to_fill(running, n_rows)
    longest = max(len(s.tokens) for s in running) // CELLS_AT_ONCE
    fit = [s for s in table.slots if s.owner is None and len(s.tokens) // CELLS_AT_ONCE <= longest]
    if found:
        assert len(found) == n_rows
        assert all(s in fit for s in found)
        assert shared or len(runs({s.id for s in (*running, *found)})) == 1
    elif shared:
        assert len(fit) < n_rows
    else:
        reach = [run for run in runs({s.id for s in (*running, *fit)}) if first in run]
        assert len(reach[0]) < len(running) + n_rows


def test_a_row_of_a_free_slot_between_running_ones_makes_one_pass_of_two() -> None:
    table = SlotTable(6, has_shared_cells=False)
    running = [table.slots[0], table.slots[2]]
    for slot in running:
        slot.owner = 1
        table.extend(slot, [1, 2], "v", 1)
    assert table.between(running) == [table.slots[1]]
    assert {s.id for s in table.to_fill(running, 2)} == {1, 3}
    table.extend(table.slots[1], [1] * CELLS_AT_ONCE, "v", 1)  # attention would look at more cells of all
    assert table.between(running) == table.to_fill(running, 2) == []
