"""Changes to an input: to its bytes, or, where its form is known, to the tree that it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

LONGEST = 1 << 16
"""Bytes, after each change: a list that is made fifty times as long five times in a row takes gigabytes."""
_NUMBERS = (0, 1, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 62, (1 << 63) - 1)
_TEXTS = (
    "", "\x00", "\x1b[2J", "../../../../tmp/escaped", "/etc/passwd", "é\ud7ff", "a" * 5000, "1" * 5000, "-1", "nan",
    "http://user:secret@host/", "{{ 1 }}", "%s%n",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1 << 31, 1 << 63, -(1 << 63), (1 << 64) - 1, 1e308, -1e308, 5e-324, 0.5, [], {}, [[]],
    {"": None}, *_TEXTS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Form:
    """How bytes become a tree of dictionaries, lists and values, and the other way round."""

    take_apart: Callable[[bytes], Any]
    put_together: Callable[[Any], bytes]


JSON = Form(msgspec.json.decode, lambda tree: json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass"))
MSGPACK = Form(msgspec.msgpack.decode, msgspec.msgpack.encode)


def mutated(data: bytes, form: Form | None, chance: Random, words: Sequence[str] = ()) -> bytes:
    """Another input, near to this one; ``words`` are some that its parser knows."""
    for _ in range(chance.choice((1, 1, 2, 5))):
        changed = _in_form(data, form, chance, words) if form and chance.random() < 0.6 else None
        data = (changed if changed is not None else _in_bytes(data, chance, words))[:LONGEST]
    return data


def _in_form(data: bytes, form: Form, chance: Random, words: Sequence[str]) -> bytes | None:
    """With one node of the tree changed; None where there is no tree."""
    try:
        tree = form.take_apart(data)
        return form.put_together(_changed(tree, chance, words))
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
        RecursionError,
        LookupError,
        OverflowError,
        TypeError,
        ValueError,
    ):
        return None


def _changed(tree: Any, chance: Random, words: Sequence[str]) -> Any:
    """One node, chosen on a walk from the root, is replaced, left out, added, doubled or buried."""
    if isinstance(tree, dict) and tree and chance.random() < 0.9:
        key = chance.choice(list(tree))
        what = chance.randrange(8)
        if what == 0:
            return {k: v for k, v in tree.items() if k != key}
        if what == 1:
            return {(chance.choice(_TEXTS) if k == key else k): v for k, v in tree.items()}
        if what == 2 and words:
            return {**tree, chance.choice(words): _value(chance, words)}
        return {**tree, key: _changed(tree[key], chance, words)}
    if isinstance(tree, list) and tree and chance.random() < 0.9:
        at = chance.randrange(len(tree))
        what = chance.randrange(8)
        if what == 0:
            return tree[:at] + tree[at + 1 :]
        if what == 1:
            return tree[: at + 1] * chance.choice((2, 50)) + tree[at + 1 :]
        return [*tree[:at], _changed(tree[at], chance, words), *tree[at + 1 :]]
    if chance.random() < 0.1:
        return _buried(tree, chance.choice((2, 30, 300)))
    return _value(chance, words)


def _value(chance: Random, words: Sequence[str]) -> Any:
    return chance.choice(words) if words and chance.random() < 0.3 else chance.choice(_VALUES)


def _buried(tree: Any, depth: int) -> Any:
    for _ in range(depth):
        tree = [tree]
    return tree


def _in_bytes(data: bytes, chance: Random, words: Sequence[str]) -> bytes:
    at = chance.randrange(len(data) + 1)
    some = chance.choice((1, 1, 2, 4, 8, 64))
    what = chance.randrange(7)
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + data[at + some :]
    if what == 2:
        return data[:at] + data[at : at + some] * chance.choice((2, 3, 200)) + data[at + some :]
    if what == 3:
        return data[:at] + chance.choice((*_TEXTS, *words)).encode() + data[at:]
    if what == 4:
        width = chance.choice((1, 2, 4, 8))
        number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
        return data[:at] + number.to_bytes(width, chance.choice(("little", "big"))) + data[at + width :]
    if what == 5:
        return data[:at] + bytes(chance.randrange(256) for _ in range(some)) + data[at + some :]
    other = chance.randrange(len(data) + 1)
    return data[:at] + data[other : other + some] + data[at + some :]
