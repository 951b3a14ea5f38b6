"""docs/security.md claims nothing that no test shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
_NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def _tests_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    named = _NAMED.findall((ROOT / "docs" / "security.md").read_text())
    assert len(named) > 60
    missing = [
        f"{path}::{name}" for path, name in named
        if not (ROOT / path).is_file() or (name and name not in _tests_in(ROOT / path))
    ]  # fmt: skip
    assert missing == []


def test_every_claim_of_a_table_names_a_test() -> None:
    """The tables of what somebody cannot do; one line says how programs are started, which is no test's."""
    text = (ROOT / "docs" / "security.md").read_text()
    claims = [
        line
        for table in re.findall(r"\| cannot \| shown by \|\n(?:\|.*\|\n)+", text)
        for line in table.splitlines()[2:]
    ]
    assert len(claims) > 40
    assert [line for line in claims if not _NAMED.search(line) and "python -P" not in line] == []
