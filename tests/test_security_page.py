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
    """The tables of what somebody cannot do."""
    text = (ROOT / "docs" / "security.md").read_text()
    claims = [
        line
        for table in re.findall(r"\| cannot \| shown by \|\n(?:\|.*\|\n)+", text)
        for line in table.splitlines()[2:]
    ]
    assert len(claims) > 40
    assert [line for line in claims if not _NAMED.search(line)] == []


def test_no_module_is_run_from_the_folder_where_lamella_was_started() -> None:
    """``python -m`` looks into that folder first, and runs a ``json.py`` that lies there; ``-P`` does not."""
    commands = [
        [ast.unparse(part) for part in node.elts]
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable"
    ]
    modules = [command for command in commands if "'-m'" in command]
    assert len(modules) >= 7
    assert [command for command in modules if command[1] != "'-P'"] == []
