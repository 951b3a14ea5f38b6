"""What a package says of its modules is all of them: a stranger reads it first."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "lamella"
_LISTED = re.compile(r"^\s*`{0,2}(\w+)`{0,2}\s{2,}\S", re.MULTILINE)


def modules_of(package: Path) -> set[str]:
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    return files | {path.parent.name for path in package.glob("*/__init__.py")}


def listed_in(package: Path) -> set[str]:
    """Modules that stand at the beginning of a line of the package's docstring."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    return set(_LISTED.findall(text)) & modules_of(package)


PACKAGES = [path.parent for path in sorted(ROOT.rglob("__init__.py")) if listed_in(path.parent)]


def test_there_are_packages_that_list_their_modules() -> None:
    assert {ROOT / "llama", ROOT / "run", ROOT / "store", ROOT / "planning"} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_that_lists_modules_lists_all(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    assert {name for name in modules_of(package) if not re.search(rf"\b{name}\b", text)} == set()
