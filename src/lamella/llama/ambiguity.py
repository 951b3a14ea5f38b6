"""In how many ways llama.cpp would have to read a text at once.

llama.cpp keeps one stack of rules for each way.  Most grammars have a handful; some double them with every character
(``s ::= "a" s "b" | "a" s "c" | "x"``), and then a single token stops the process.  That is found out here by reading
along a text chosen to make stacks, in Python, where it can be stopped.
"""

from __future__ import annotations

import functools
import graphlib
from collections.abc import Iterable, Sequence

from lamella.core.errors import InvalidRequest
from lamella.llama.gbnf import Characters, Rules, Symbol, read

MOST_WAYS = 2000
MOST_CHAINED = 2000  # rules that begin with one another; llama.cpp recurses through them
PROBE_CHARACTERS = 64
PROBE_EFFORT = 100_000  # stacks looked at, some tenths of a second
CHOICES = 6  # characters tried at each step


@functools.lru_cache(maxsize=64)
def check_bounds(grammar: str) -> None:
    """Refuse a grammar that llama.cpp could not follow; what was found good is remembered.

    Raises:
        InvalidRequest: it cannot be read, a rule begins with itself, or it can be read in too many ways at once.
    """
    rules = read(grammar)
    nullable = _nullable(rules)
    starts = [_starts(alternatives, nullable) for alternatives in rules.alternatives]
    ways = [1] * len(starts)
    chained = [1] * len(starts)
    for number in _innermost_first(rules, starts):
        inner = [s for s in starts[number] if isinstance(s, int)]
        ways[number] = len(starts[number]) - len(inner) + 1 + sum(ways[s] for s in inner)
        chained[number] = 1 + max((chained[s] for s in inner), default=0)
        if ways[number] > MOST_WAYS or chained[number] > MOST_CHAINED:
            raise InvalidRequest(
                f"the grammar is too ambiguous: rule '{rules.name(number)}' can begin in {ways[number]} ways through "
                f"{chained[number]} rules, at most {MOST_WAYS} are taken"
            )
    _Probe(rules).run()


def _nullable(rules: Rules) -> set[int]:
    """Rules that may be empty."""
    waiting: dict[int, list[tuple[int, list[int]]]] = {}
    found: set[int] = set()
    todo = []
    for number, alternatives in enumerate(rules.alternatives):
        for alternative in alternatives:
            needed = [s for s in alternative if isinstance(s, int)]
            if len(needed) < len(alternative):
                continue
            if not needed:
                todo.append(number)
            for symbol in set(needed):
                waiting.setdefault(symbol, []).append((number, needed))
    while todo:
        number = todo.pop()
        if number not in found:
            found.add(number)
            todo += [n for n, needed in waiting.get(number, ()) if found.issuperset(needed)]
    return found


def _starts(alternatives: Iterable[Sequence[Symbol]], nullable: set[int]) -> list[Symbol]:
    """What the alternatives may begin with."""
    found = []
    for alternative in alternatives:
        for symbol in alternative:
            found.append(symbol)
            if symbol not in nullable:
                break
    return found


def _innermost_first(rules: Rules, starts: Sequence[Sequence[Symbol]]) -> list[int]:
    graph = {n: {s for s in symbols if isinstance(s, int)} for n, symbols in enumerate(starts)}
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = [name for name, number in rules.names.items() if number in error.args[1]]
        what = f"rule '{cycle[0]}'" if cycle else "a repetition"
        raise InvalidRequest(
            f"{what} of the grammar can begin with itself: left recursion, or a repetition of what may be empty"
        ) from None


class _Probe:
    """llama.cpp's stacks for one text, which is chosen as it goes; stacks are numbers, 0 the empty one."""

    def __init__(self, rules: Rules) -> None:
        self._symbols: list[Symbol | None] = []  # all alternatives one after the other, each with a None at its end
        self._begins: list[list[int]] = []  # of each rule: where its alternatives begin
        for alternatives in rules.alternatives:
            self._begins.append([])
            for alternative in alternatives:
                self._begins[-1].append(len(self._symbols))
                self._symbols += [*alternative, None]
        self._numbers: dict[tuple[int, int], int] = {}
        self._stacks: list[tuple[int, int]] = [(-1, 0)]  # place of the top, and the stack below it
        self._heights = [0]
        self._effort = 0
        self._now = self._expanded(self._put(place, 0) for place in self._begins[rules.names["root"]])

    def run(self) -> None:
        for _ in range(PROBE_CHARACTERS):
            choices = [self._after(code) for code in self._codes()]
            if not choices or self._effort > PROBE_EFFORT:
                return
            self._now = max(choices, key=lambda stacks: (len(stacks), max(self._heights[s] for s in stacks)))

    def _put(self, place: int, below: int) -> int:
        """The stack with ``place`` on top of ``below``; at the end of an alternative nothing is put."""
        if self._symbols[place] is None:
            return below
        key = place, below
        if key not in self._numbers:
            self._numbers[key] = len(self._stacks)
            self._stacks.append(key)
            self._heights.append(self._heights[below] + 1)
        return self._numbers[key]

    def _expanded(self, stacks: Iterable[int]) -> set[int]:
        """Stacks with characters on top, or empty, that these become."""
        todo, seen, found = list(stacks), set[int](), set[int]()
        while todo:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            self._effort += 1
            place, below = self._stacks[stack]
            symbol = self._symbols[place] if stack else None
            if isinstance(symbol, int):
                rest = self._put(place + 1, below)
                todo += [self._put(begin, rest) for begin in self._begins[symbol]]
            else:
                found.add(stack)
                if len(found) > MOST_WAYS:
                    raise InvalidRequest(
                        f"the grammar is too ambiguous: a text of at most {PROBE_CHARACTERS} characters can be read "
                        f"in more than {MOST_WAYS} ways"
                    )
        return found

    def _after(self, code: int) -> set[int]:
        self._effort += len(self._now)
        tops = ((self._stacks[s], self._characters(s)) for s in self._now if s)
        return self._expanded([self._put(place + 1, below) for (place, below), top in tops if code in top])

    def _characters(self, stack: int) -> Characters:
        symbol = self._symbols[self._stacks[stack][0]]
        assert isinstance(symbol, Characters)
        return symbol

    def _codes(self) -> list[int]:
        """Characters that may come next: those that most stacks wait for."""
        waited: dict[int, int] = {}
        for stack in self._now:
            if stack:
                for code in _examples(self._characters(stack)):
                    waited[code] = waited.get(code, 0) + 1
        return sorted(waited, key=lambda code: -waited[code])[:CHOICES]


@functools.lru_cache(maxsize=1024)
def _examples(characters: Characters) -> tuple[int, ...]:
    if not characters.is_negated:
        return tuple(low for low, high in characters.ranges if low <= high)[:4]
    return tuple(code for code in map(ord, "a1 -{") if code in characters)
