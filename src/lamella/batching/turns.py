"""Whose variant is open, where memory does not hold all that requests ask for: pure decisions.

    turns = take_turns(wishes, users={"int4": 2}, without_room={"int5"}, running="int8")

Opening a variant takes up to seconds, so none is closed for another before it has served somebody.  Requests whose
variant is open pass by one whose variant finds no room beside it, ``MOST_OVERTAKEN`` at most; then those that run
are waited for, and the other one is opened.  What runs is never stopped for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

MOST_OVERTAKEN = 8
"""Less urgent requests of open variants that begin before a request that waits for room for its own."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that waits, and the variant that it asks for.

    Attributes:
        n_overtaken: how many less urgent requests of other variants have begun since there was no room for its own;
            None where there has been no lack of it.
    """

    id: int
    variant: str
    n_overtaken: int | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """What may happen now.

    Attributes:
        may_begin: requests whose variant is open and whose turn it is, the most urgent first.
        to_open: variants that are not open, and were not found to lack room, each as the most urgent request for it: at
            most one, since the next could take its place before it is used; and the running one, which is only not
            held.
        let_go: open variants that nobody uses and nobody waits for whose turn it is.
    """

    may_begin: tuple[int, ...]
    to_open: tuple[Wish, ...]
    let_go: tuple[str, ...]


def take_turns(wishes: Sequence[Wish], users: Mapping[str, int], without_room: Collection[str], running: str) -> Turns:
    """Decide.

    Args:
        wishes: of all that wait for a variant, the most urgent first.
        users: open variant -> requests that run at it.
        without_room: variants that do not fit beside those.
        running: the variant that computes requests without a wish: it takes no room beside itself.
    """
    may_begin: list[int] = []
    to_open: dict[str, Wish] = {}
    wanted: set[str] = set()
    lacks_room = is_behind = False
    n_may_overtake = MOST_OVERTAKEN
    for wish in wishes:
        if wish.variant in users:
            if wish.variant == running or not lacks_room:
                wanted.add(wish.variant)
            if is_behind and wish.variant != running:
                if n_may_overtake <= 0:
                    continue
                n_may_overtake -= 1
            may_begin.append(wish.id)
        elif wish.variant == running and running not in without_room:  # it may have been replaced in the store
            to_open.setdefault(wish.variant, wish)
        else:
            lacks_room = lacks_room or wish.variant in without_room
            is_behind = is_behind or lacks_room or wish.n_overtaken is not None
            n_may_overtake = min(n_may_overtake, MOST_OVERTAKEN - (wish.n_overtaken or 0))
            if not lacks_room and not to_open.keys() - {running}:
                to_open[wish.variant] = wish
    let_go = tuple(variant for variant, n in users.items() if n == 0 and variant not in wanted)
    return Turns(tuple(may_begin), tuple(to_open.values()), let_go)
