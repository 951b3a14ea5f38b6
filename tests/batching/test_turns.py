"""Whose variant is open where memory does not hold all: nobody waits for ever, and none is opened for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.batching.turns import MOST_OVERTAKEN, Wish, take_turns

SIZES = {"a": 3, "b": 3, "c": 2, "d": 1}
ROOM = 4
"""Beside the running variant: for ``a`` and ``d``, not for ``a`` and ``b``."""
RUNNING = "r"


def wishes(*variants: str, n_overtaken: int | None = None) -> list[Wish]:
    return [Wish(i, variant, n_overtaken) for i, variant in enumerate(variants)]


def test_what_is_open_is_used_and_what_nobody_wants_is_let_go() -> None:
    turns = take_turns(wishes("a", "b", "a"), {"a": 0, "b": 2, "c": 0, "d": 1}, (), RUNNING)
    assert (turns.may_begin, turns.to_open, turns.let_go) == ((0, 1, 2), (), ("c",))


def test_one_variant_is_opened_at_a_time_the_most_urgent_first() -> None:
    asked = wishes("a", "b", "a", "c")
    assert take_turns(asked, {}, (), RUNNING).to_open == (asked[0],)
    assert take_turns(asked, {"a": 0}, (), RUNNING).to_open == (asked[1],)


def test_nothing_is_opened_before_what_found_no_room() -> None:
    turns = take_turns(wishes("b", "d"), {"a": 1}, {"b"}, RUNNING)
    assert (turns.may_begin, turns.to_open, turns.let_go) == ((), (), ())


def test_what_a_more_urgent_request_waits_for_stays_open_and_what_a_less_urgent_one_does_goes() -> None:
    assert take_turns(wishes("a", "b"), {"a": 0}, {"b"}, RUNNING).let_go == ()
    assert take_turns(wishes("b", "a"), {"a": 0}, {"b"}, RUNNING).let_go == ("a",)


def test_requests_of_the_open_variant_overtake_so_often_and_no_more() -> None:
    late = wishes("b", *["a"] * 20)
    for n_before in (None, 0, 3, MOST_OVERTAKEN, MOST_OVERTAKEN + 1):
        late[0] = replace(late[0], n_overtaken=n_before)
        n_left = max(0, MOST_OVERTAKEN - (n_before or 0))
        assert len(take_turns(late, {"a": 1}, {"b"}, RUNNING).may_begin) == n_left
    assert len(take_turns(late[::-1], {"a": 1}, {"b"}, RUNNING).may_begin) == 20  # these came before
    while_it_is_opened = take_turns(late, {"a": 1}, (), RUNNING)
    assert (while_it_is_opened.may_begin, while_it_is_opened.to_open) == ((), (late[0],))


def test_the_running_variant_takes_no_room_and_no_turn() -> None:
    late = wishes("b", RUNNING, RUNNING, n_overtaken=MOST_OVERTAKEN)
    assert take_turns(late, {"a": 1}, {"b"}, RUNNING).to_open == (late[1],)
    assert take_turns(late, {"a": 1, RUNNING: 0}, {"b"}, RUNNING).may_begin == (1, 2)
    assert take_turns(late, {"a": 1, RUNNING: 0}, {"b"}, RUNNING).let_go == ()
    replaced = take_turns(late[1:], {"a": 1}, {RUNNING}, RUNNING)  # in the store, by one that takes room of its own
    assert (replaced.may_begin, replaced.to_open) == ((), ())


@dataclass
class Request:
    """One of the made-up engine below, of ``n_turns``."""

    id: int
    variant: str
    priority: int
    n_turns: int
    n_overtaken: int | None = None

    @property
    def urgency(self) -> tuple[int, int]:
        return -self.priority, self.id


@dataclass
class Engine:
    """Memory, slots and requests, as the scheduler and the served variants keep them; opening takes some turns."""

    n_slots: int
    n_turns_to_open: int
    users: dict[str, int] = field(default_factory=dict)
    without_room: set[str] = field(default_factory=set)
    opening: dict[str, int] = field(default_factory=dict)
    waiting: dict[int, Request] = field(default_factory=dict)
    running: dict[int, Request] = field(default_factory=dict)
    n_opened: int = 0
    served_since_opened: dict[str, int] = field(default_factory=dict)
    for_nothing: int = 0
    most_overtaken: int = 0

    @property
    def queue(self) -> list[Request]:
        return sorted(self.waiting.values(), key=lambda r: r.urgency)

    def wishes(self) -> list[Wish]:
        for request in self.queue:
            if request.variant in self.without_room and request.n_overtaken is None:
                request.n_overtaken = 0
        return [Wish(r.id, r.variant, r.n_overtaken) for r in self.queue]

    def open(self, variant: str) -> bool:
        assert variant not in self.without_room
        self.opening.setdefault(variant, self.n_turns_to_open)
        if self.opening[variant] > 0:
            return False
        del self.opening[variant]
        assert variant not in self.users
        if SIZES[variant] + sum(SIZES[v] for v in self.users) > ROOM:
            self.without_room.add(variant)
        else:
            self.users[variant] = self.served_since_opened[variant] = 0
            self.n_opened += 1
        return True

    def open_variants(self) -> Sequence[int]:
        while True:
            turns = take_turns(self.wishes(), self.users, self.without_room, RUNNING)
            if not sum(self.open(wish.variant) for wish in turns.to_open):
                return turns.may_begin

    def start(self, request: Request) -> None:
        del self.waiting[request.id]
        self.running[request.id] = request
        self.users[request.variant] += 1
        self.served_since_opened[request.variant] += 1
        for other in self.waiting.values():
            if other.n_overtaken is not None and other.urgency < request.urgency and other.variant not in self.users:
                other.n_overtaken += 1
                self.most_overtaken = max(self.most_overtaken, other.n_overtaken)

    def turn(self) -> None:
        for request in list(self.running.values()):
            request.n_turns -= 1
            if request.n_turns <= 0:
                del self.running[request.id]
                self.users[request.variant] -= 1
        self.opening = {v: n - 1 for v, n in self.opening.items()}
        for number in self.open_variants():
            if len(self.running) < self.n_slots:
                self.start(self.waiting[number])
        unused = take_turns(self.wishes(), self.users, self.without_room, RUNNING).let_go
        for variant in unused:
            assert self.users.pop(variant) == 0
            self.for_nothing += self.served_since_opened[variant] == 0
            self.without_room.clear()
        if unused:
            self.open_variants()


ARRIVALS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(SIZES)), st.integers(1, 6)), max_size=60)
"""Turns after the one before, variant, turns that it takes."""


@given(ARRIVALS, st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_everybody_is_served_soon_and_no_variant_is_opened_for_nobody(
    arrivals: list[tuple[int, str, int]], n_slots: int, n_turns_to_open: int
) -> None:
    engine, pause = Engine(n_slots, n_turns_to_open), 0
    left = list(enumerate(arrivals))
    most_turns = sum(after + n + 2 * (n_turns_to_open + 2) for after, _, n in arrivals) + 1
    for _ in range(most_turns):
        pause += 1
        while left and pause >= left[0][1][0]:
            number, (_, variant, n) = left.pop(0)
            engine.waiting[number] = Request(number, variant, 0, n)
            pause = 0
        engine.turn()
    assert [*left, *engine.waiting, *engine.running] == []
    assert engine.most_overtaken <= MOST_OVERTAKEN
    assert engine.for_nothing == 0
    assert engine.n_opened <= len(arrivals)


@given(ARRIVALS, st.lists(st.integers(0, 2), min_size=60, max_size=60), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_priorities_keep_the_bound_and_everybody_is_served(
    arrivals: list[tuple[int, str, int]], priorities: list[int], n_slots: int
) -> None:
    engine = Engine(n_slots, 1)
    for number, (_, variant, n) in enumerate(arrivals):
        engine.waiting[number] = Request(number, variant, priorities[number], n)
    for _ in range(sum(n + 6 for _, _, n in arrivals) + 1):
        engine.turn()
    assert [*engine.waiting, *engine.running] == []
    assert engine.most_overtaken <= MOST_OVERTAKEN


def test_two_variants_in_turn_are_opened_once_for_many_requests() -> None:
    engine = Engine(n_slots=1, n_turns_to_open=2)
    engine.waiting = {i: Request(i, "ab"[i % 2], 0, 2) for i in range(8 * MOST_OVERTAKEN)}
    for _ in range(1000):
        engine.turn()
    assert [*engine.waiting, *engine.running] == []
    assert engine.n_opened <= 8 + 1


def test_a_steady_stream_of_requests_for_the_open_variant_does_not_shut_others_out() -> None:
    engine = Engine(n_slots=2, n_turns_to_open=1)
    engine.waiting[1] = Request(1, "b", 0, 5)
    engine.users, engine.served_since_opened = {"a": 0}, {"a": 0}
    for number in range(1000, 1100):
        engine.waiting[number] = Request(number, "a", 0, 2)
        engine.turn()
        if 1 in engine.running:
            break
    assert 1 in engine.running
    assert engine.most_overtaken <= MOST_OVERTAKEN
