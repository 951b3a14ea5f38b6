"""The words that a parser knows, read off its source: coverage alone does not guess the name of a field."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

LONGEST_WORD = 40


@functools.cache
def words_of(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Names of fields, and short strings without spaces, in modules of ``lamella``; in the order of the alphabet."""
    found: set[str] = set()
    for module in modules:
        spec = importlib.util.find_spec(f"lamella.{module}")
        assert spec is not None
        assert spec.origin is not None
        found.update(_words(ast.parse(Path(spec.origin).read_text())))
    return tuple(sorted(found))


def _words(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_word(node.value):
            yield node.value


def _is_word(text: str) -> bool:
    return 0 < len(text) <= LONGEST_WORD and text.isascii() and text.isprintable() and " " not in text


def dictionary(words: tuple[str, ...]) -> str:
    """Them as libFuzzer reads them (``-dict=``)."""
    return "".join('"{}"\n'.format(word.replace("\\", "\\\\").replace('"', '\\"')) for word in words)
