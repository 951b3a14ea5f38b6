"""Exit codes: what scripts rely on, and what docs/cli.md lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lamella.core import errors
from lamella.core.errors import INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE, LamellaError

PAGE = Path(__file__).parents[2] / "docs/cli.md"
EXIT_CODES = {
    "LamellaError": 1,
    "InvalidRequest": 2,
    "ModelError": 3,
    "DoesNotFit": 4,
    "ExceedsCeiling": 4,
    "NoPlacement": 4,
    "ArtifactError": 5,
    "StoreError": 6,
    "StorageFailed": 7,
    "LibraryError": 8,
    "EngineFailed": 9,
    "RemoteFailed": 10,
    "Unavailable": 11,
}
"""Written out once more: whoever changes one breaks scripts."""
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LamellaError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_has_the_exit_code_of_its_branch(kind: type[LamellaError]) -> None:
    """The nearest that is listed; whatever is listed nowhere would end as an error that nobody foresaw."""
    branch = next(base.__name__ for base in kind.__mro__ if base.__name__ in EXIT_CODES)
    assert branch != "LamellaError" or kind is LamellaError
    assert kind.exit_code == EXIT_CODES[branch]


def test_the_page_lists_all_exit_codes_and_no_other() -> None:
    table = PAGE.read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == [0, *sorted({*EXIT_CODES.values(), INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE})]
