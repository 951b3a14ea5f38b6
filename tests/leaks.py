"""What no document for others may have in it: words that only Lamella's own processes say to each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

import lamella.batching.messages
import lamella.batching.saved
import lamella.cluster.joining
import lamella.cluster.messages  # noqa: F401  (messages are found below once their modules are imported)


def strict_json(text: str | bytes) -> Any:
    """The document; numbers that JSON has not are refused, which ``json`` itself takes."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def leaks(document: Any) -> list[str]:
    """Where a document has a message's tag, or a field with a private name."""
    return list(_leaks(document, "", _tags()))


def _leaks(value: Any, path: str, tags: frozenset[tuple[str, object]]) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}"
            if key.startswith("_") or (isinstance(item, str) and (key, item) in tags):
                yield f"{here} = {item}"
            yield from _leaks(item, here, tags)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaks(item, f"{path}[{i}]", tags)


def _tags() -> frozenset[tuple[str, object]]:
    """(field, tag) of all messages."""
    configs = [kind.__struct_config__ for kind in _descendants(msgspec.Struct)]
    found = {(c.tag_field, c.tag) for c in configs if c.tag is not None and c.tag_field != "format"}
    assert ("type", "LayerFacts") in found
    return frozenset(found)


def _descendants(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)
