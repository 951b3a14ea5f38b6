"""``scripts/mutations.py``: which tests are asked about a broken line, and what counts as noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.mutations import Mutation, far_tests, judged, near_tests

FILES = {
    "src/lamella/__init__.py": "",
    "src/lamella/store/__init__.py": "",
    "src/lamella/store/files.py": "def twice(x):\n    return 2 * x\n",
    "src/lamella/api/joined.py": "from lamella.store.files import twice\n",
    "tests/store/test_files.py": "from lamella.store import files\ndef test_it(): assert files.twice(1) == 2\n",
    "tests/store/test_a.py": "from lamella.store.files import twice\ndef test_it(): assert twice(0) == 0\n",
    "tests/store/test_b.py": "def test_always_fails(): assert False\n",
    "tests/cli/test_far.py": "from lamella.api.joined import twice\n",
    "tests/cli/test_named.py": "import lamella.store.files\n",
    "tests/cli/test_else.py": "from lamella.store.filesystem import twice\n",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def _broken(source: str) -> Mutation:
    return Mutation("store/files.py", 2, "by hand", source, "")


def test_the_folders_tests_come_first_and_those_that_name_the_module_before_the_others(copy: Path) -> None:
    assert near_tests(copy, "store/files.py") == [f"tests/store/test_{name}.py" for name in ("files", "a", "b")]


def test_far_are_those_that_name_it_and_those_that_name_what_imports_it(copy: Path) -> None:
    assert far_tests(copy, "store/files.py") == ["tests/cli/test_named.py", "tests/cli/test_far.py"]


@pytest.fixture
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pytest, several for each mutation: without what takes a second each."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p pytest_timeout")


def test_only_a_test_that_passes_on_the_whole_line_notices(copy: Path, quick_starts: None) -> None:
    """test_b fails with or without the mutation, so it says nothing."""
    assert (
        judged(_broken("def twice(x):\n    return 3 * x\n"), copy, far=False).by == "tests/store/test_files.py::test_it"
    )
    assert judged(_broken("def twice(x):\n    return x + x\n"), copy, far=False).by is None
    assert (copy / "src/lamella/store/files.py").read_text() == FILES["src/lamella/store/files.py"]


def test_a_test_that_fails_once_only_has_noticed_nothing(copy: Path, quick_starts: None) -> None:
    """As one with a limit, where the machine stood still."""
    (copy / "tests/store/test_files.py").write_text(
        "from pathlib import Path\n"
        "def test_once():\n"
        "    seen = Path(__file__).with_suffix('.seen')\n"
        "    was_there = seen.exists()\n"
        "    seen.touch()\n"
        "    assert was_there\n"
    )
    assert judged(_broken("def twice(x):\n    return x + x\n"), copy, far=False).by is None
