"""Read a grammar in llama.cpp's form (GBNF), to refuse what llama.cpp would hang on or crash from.

llama.cpp follows a grammar with a set of stacks, one for each way in which the text so far can be read.  It trusts the
grammar: it does not see every left recursion, ``{5,2}`` repeats 2^64 times, nested brackets recurse in C, and nothing
bounds the stacks.  So a foreign grammar is read here first, with bounds on everything.

    rules = read("root ::= [a-z]+ (\\",\\" root)?")
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lamella.core.errors import InvalidRequest

MOST_CHARACTERS = 100_000
MOST_SYMBOLS = 200_000  # after repetitions are written out, as llama.cpp does
MOST_REPEATS = 1000
MOST_WRITTEN_OUT = 2000  # rules made of one repetition; llama.cpp's MAX_REPETITION_THRESHOLD
MOST_DEPTH = 100  # of brackets

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t]|\#[^\r\n]*)+)
      | (?P<newline>[\r\n]+)
      | (?P<name>[A-Za-z0-9-]+)
      | (?P<becomes>::=)
      | (?P<literal>"(?:\\.|[^"\\])*")
      | (?P<set>\[(?:\\.|[^\]\\])*\])
      | (?P<any>\.)
      | (?P<repeat>[*+?]|\{[ \t\r\n]*[0-9]+[ \t\r\n]*(?:,[ \t\r\n]*[0-9]*[ \t\r\n]*)?\})
      | (?P<open>\()
      | (?P<close>\))
      | (?P<or>\|)""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)|([^\\])", re.DOTALL)
_ESCAPED = {"t": "\t", "r": "\r", "n": "\n", **{c: c for c in '\\"[]-'}}


@dataclass(frozen=True, slots=True)
class Characters:
    """A set of characters, as ranges of code points; ``is_negated`` for all others."""

    ranges: tuple[tuple[int, int], ...]
    is_negated: bool = False

    def __contains__(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges) != self.is_negated


Symbol = Characters | int
"""What an alternative consists of: characters, or a rule by its number."""


@dataclass(slots=True)
class Rules:
    """A grammar with groups and repetitions written out as rules of their own, as llama.cpp writes them out.

    Attributes:
        names: number of each named rule.
        alternatives: of each rule, by its number.
    """

    names: dict[str, int] = field(default_factory=dict)
    alternatives: list[list[list[Symbol]]] = field(default_factory=list)
    n_symbols: int = 0

    def number(self, name: str) -> int:
        """Of a named rule, which is made where it is named first."""
        if name not in self.names:
            self.names[name] = self.add()
        return self.names[name]

    def add(self) -> int:
        """One more rule without alternatives; its number."""
        self.alternatives.append([])
        return len(self.alternatives) - 1

    def name(self, number: int) -> str:
        """What messages call a rule."""
        return next((name for name, n in self.names.items() if n == number), "a group or repetition")

    def count(self, n_symbols: int) -> None:
        """So many more symbols.

        Raises:
            InvalidRequest: the grammar is too large.
        """
        self.n_symbols += n_symbols
        if self.n_symbols + len(self.alternatives) > MOST_SYMBOLS:
            raise InvalidRequest(f"the grammar is too large: more than {MOST_SYMBOLS} symbols with its repetitions")


@dataclass(slots=True)
class _Open:
    """A rule or group that is being read.

    Attributes:
        last: where the last item of the last alternative begins, which a repetition repeats.
        n_written_out: rules that llama.cpp makes of that item.
    """

    rule: int
    alternatives: list[list[Symbol]] = field(default_factory=lambda: [[]])
    last: int = 0
    n_written_out: int = 1

    def add(self, symbols: list[Symbol], n_written_out: int = 1) -> None:
        self.last = len(self.alternatives[-1])
        self.alternatives[-1] += symbols
        self.n_written_out = n_written_out


def read(text: str) -> Rules:
    """The rules of a grammar.

    Raises:
        InvalidRequest: it cannot be read, has no rule ``root``, or is too large; says where.
    """
    if len(text) > MOST_CHARACTERS:
        raise InvalidRequest(f"the grammar has {len(text)} characters, at most {MOST_CHARACTERS} are taken")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):  # C reads up to the first 0, and UTF-8 only
        raise InvalidRequest("the grammar holds a character that is no text")
    rules = Rules()
    tokens = _tokens(text)
    for kind, name, line in tokens:
        if kind in ("space", "newline"):
            continue
        if kind != "name" or _after_space(tokens)[0] != "becomes":
            raise InvalidRequest(f"line {line} of the grammar: expected NAME ::= ..., found '{name[:20]}'")
        _read_rule(rules, rules.number(name), tokens)
    for name, number in rules.names.items():
        if not rules.alternatives[number]:
            raise InvalidRequest(f"the grammar has no rule '{name}'")
    if "root" not in rules.names:
        raise InvalidRequest("the grammar has no rule 'root'")
    return rules


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Kind, text and line of each token."""
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise InvalidRequest(f"line {line} of the grammar: '{text[position : position + 20]}' is not understood")
        yield match.lastgroup, match[0], line
        line += match[0].count("\n")
        position = match.end()
    yield "newline", "", line


def _after_space(tokens: Iterator[tuple[str, str, int]]) -> tuple[str, str, int]:
    return next((t for t in tokens if t[0] != "space"), ("newline", "", 0))


def _read_rule(rules: Rules, number: int, tokens: Iterator[tuple[str, str, int]]) -> None:
    """Read up to the end of the line that ends the rule."""
    stack = [_Open(number)]
    may_break = True  # after ``::=`` and ``|`` a line may end
    for kind, text, line in tokens:
        if kind == "space" or (kind == "newline" and text and (may_break or len(stack) > 1)):
            continue
        if kind == "newline":
            break
        may_break = kind == "or"
        try:
            _read_token(rules, stack, kind, text)
        except InvalidRequest as error:
            raise InvalidRequest(f"line {line} of the grammar: {error}") from None
    if len(stack) > 1:
        raise InvalidRequest("the grammar ends inside a bracket")
    rules.alternatives[number] = stack[0].alternatives


def _read_token(rules: Rules, stack: list[_Open], kind: str, text: str) -> None:
    top = stack[-1]
    if kind == "literal":
        symbols: list[Symbol] = [Characters(((c, c),)) for c, _ in _characters(text[1:-1])]
        top.add(symbols)
        rules.count(len(symbols))
    elif kind == "set":
        top.add([_set(text[1:-1])])
    elif kind == "any":
        top.add([Characters((), is_negated=True)])
    elif kind == "name":
        top.add([rules.number(text)])
    elif kind == "or":
        top.alternatives.append([])
        top.last = 0
    elif kind == "open":
        if len(stack) > MOST_DEPTH:
            raise InvalidRequest(f"more than {MOST_DEPTH} brackets inside each other")
        stack.append(_Open(rules.add()))
    elif kind == "close" and len(stack) > 1:
        stack.pop()
        rules.alternatives[top.rule] = top.alternatives
        stack[-1].add([top.rule], len(rules.alternatives) - top.rule)
    elif kind == "repeat":
        _repeat(rules, top, text)
    else:
        raise InvalidRequest(f"'{text}' is not expected here")
    rules.count(1)


def _characters(text: str) -> list[tuple[int, bool]]:
    """Code points, and whether each was escaped."""
    found = []
    position = 0
    while position < len(text):
        match = _CHARACTER.match(text, position)
        if match is None or (match[4] and match[4] not in _ESCAPED):
            raise InvalidRequest(f"unknown escape {text[position : position + 2]}")
        number = match[1] or match[2] or match[3]
        character = _ESCAPED[match[4]] if match[4] else match[5]
        code = int(number, 16) if number else ord(character)
        found.append((code, match[5] is None))
        position = match.end()
    return found


def _set(text: str) -> Characters:
    is_negated = text.startswith("^")
    characters = _characters(text[is_negated:])
    ranges = []
    i = 0
    while i < len(characters):
        low = high = characters[i][0]
        if i + 2 < len(characters) and characters[i + 1] == (ord("-"), False):
            high = characters[i + 2][0]
            i += 2
        ranges.append((low, high))
        i += 1
    if not ranges:
        raise InvalidRequest("an empty set of characters")
    return Characters(tuple(ranges), is_negated)


def _repeat(rules: Rules, top: _Open, text: str) -> None:
    """Write a repetition of the last item out, as llama.cpp does (``handle_repetitions``)."""
    least, most = _bounds(text)
    sequence = top.alternatives[-1]
    item = sequence[top.last :]
    if not item:
        raise InvalidRequest(f"nothing to repeat before '{text}'")
    top.n_written_out *= most or least or 1
    if top.n_written_out > MOST_WRITTEN_OUT:
        raise InvalidRequest(f"'{text}' repeats something too complex: at most {MOST_WRITTEN_OUT} rules may come of it")
    n_optional = 1 if most is None else most - least
    rules.count(len(item) * (least + n_optional))
    sequence[top.last :] = item * least
    last = -1
    for i in range(n_optional):
        again = rules.add()
        tail: list[Symbol] = [again if most is None else last] if most is None or i > 0 else []
        rules.alternatives[again] = [[*item, *tail], []]
        last = again
    if n_optional:
        sequence.append(last)


def _bounds(text: str) -> tuple[int, int | None]:
    if text in ("*", "+", "?"):
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
    first, comma, second = text[1:-1].partition(",")
    if max(len(first), len(second)) > 9 or max(int(first), int(second.strip() or 0)) > MOST_REPEATS:
        raise InvalidRequest(f"{text}: at most {MOST_REPEATS} repetitions are taken")
    least = int(first)
    most = least if not comma else int(second) if second.strip() else None
    if most is not None and most < least:
        raise InvalidRequest(f"{text}: the second number is below the first")
    return least, most
