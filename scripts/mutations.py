"""Break random lines of the core, one at a time, and see whether the tests notice.

    .venv/bin/pip install cosmic-ray
    .venv/bin/python -m scripts.mutations [--count 30] [--first 1] [--seed 1] [--commit HEAD] [--report FILE]
                                          [--only MODULE:LINE] [--far]

``scripts/mutants.py`` breaks a line that is drawn at random, in a copy of what is committed.  Then the tests near it
run, until one fails: those of the module's own folder.  ``--far`` tries what they let pass on all others that name the
module, or one that imports it.  A failure counts where the test passes on the whole line, and then fails on the broken
one again: a test with a limit fails also where the machine stands still.  What no test notices is printed as a diff: a
test is missing, or the line makes no difference.

Interrupted, it goes on where it was, given the same ``--report``; without it, ``--first 25`` begins with the 25th line.
A seed draws the same lines from the same commit only.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ("core", "llama", "measuring", "planning", "quantize", "run", "store", "remote", "batching", "serving", "qos")
MOST_SECONDS = 1200.0
_TEST_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Mutation:
    """One broken line.

    Attributes:
        module: path below ``src/lamella``.
        line: counted from 1.
        how: the operator's name.
        source: the whole module with the line broken.
        diff: what was done, for people.
    """

    module: str
    line: int
    how: str
    source: str
    diff: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said.

    Attributes:
        by: the first test that failed, None where none did.
        far: whether all tests that might notice were asked.
    """

    module: str
    line: int
    how: str
    diff: str
    by: str | None
    far: bool
    seconds: float

    def __str__(self) -> str:
        unnoticed = "NOT NOTICED" if self.far else "NOT NOTICED by the tests near it"
        return f"{self.seconds:6.0f} s  {self.module}:{self.line} {self.how}  {self.by or unnoticed}"


def main() -> None:
    """Judge what is drawn, and write the report after each."""
    options = _options()
    with _copy(options.commit) as copy:
        drawn = draw(copy, options.count, options.seed)[options.first - 1 :]
        if options.only:
            drawn = [mutation for mutation in drawn if f"{mutation.module}:{mutation.line}" in options.only]
        if options.list:
            print("\n".join(mutation.diff for mutation in drawn))
            return
        verdicts = _read_report(options.report)
        for mutation in drawn:
            key = (mutation.module, mutation.line, mutation.how)
            known = verdicts.get(key)
            if known is None or (options.far and known.by is None and not known.far):
                verdicts[key] = judged(mutation, copy, far=options.far)
                print(verdicts[key], flush=True)
                _write_report(options.report, list(verdicts.values()))
    _sum_up(list(verdicts.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument(
        "--first", type=int, default=1, help="of the drawn lines, counted from 1: those before it were judged"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commit", default="HEAD", help="that is drawn from and tested")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "mutations.json")
    parser.add_argument("--only", action="append", metavar="MODULE:LINE", help="as a report names it; several times")
    parser.add_argument("--far", action="store_true", help="ask all tests that might notice, not only those near")
    parser.add_argument("--list", action="store_true", help="print the diffs and test nothing")
    return parser.parse_args()


@contextmanager
def _copy(commit: str) -> Iterator[Path]:
    """A folder with what is committed, so that who edits files meanwhile disturbs nothing."""
    with tempfile.TemporaryDirectory(prefix="lamella-mutations-") as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
        yield Path(folder)


def _read_report(path: Path) -> dict[tuple[str, int, str], Verdict]:
    documents = json.loads(path.read_text()) if path.exists() else []
    verdicts = [Verdict(**document) for document in documents]
    return {(verdict.module, verdict.line, verdict.how): verdict for verdict in verdicts}


def _write_report(path: Path, verdicts: list[Verdict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n")


def _sum_up(verdicts: list[Verdict]) -> None:
    survivors = [verdict for verdict in verdicts if verdict.by is None]
    print(*(f"\nnot noticed: {verdict.diff}" for verdict in survivors))
    print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} noticed")


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(copy: Path, count: int, seed: int) -> list[Mutation]:
    """Broken lines of the core, each line as likely as any other; those that cannot be broken are passed over."""
    from scripts.mutants import mutations_of  # cosmic-ray, which choosing tests does not need

    rng = random.Random(seed)
    folder = copy / "src/lamella"
    lines = [
        (path, number)
        for name in CORE
        for path in sorted((folder / name).rglob("*.py"))
        for number in range(1, len(path.read_text().splitlines()) + 1)
    ]
    rng.shuffle(lines)
    drawn: list[Mutation] = []
    for path, line in lines:
        if len(drawn) == count:
            break
        source, module = path.read_text(), str(path.relative_to(folder))
        if choices := list(mutations_of(source, line)):
            how, broken = rng.choice(choices)
            drawn.append(Mutation(module, line, how, broken, _diff(module, how, source, broken)))
    return drawn


def _diff(module: str, how: str, source: str, broken: str) -> str:
    before, after = source.splitlines(keepends=True), broken.splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, f"src/lamella/{module}", how, n=2))


# --- choosing tests --------------------------------------------------------------------------------------------------


def near_tests(copy: Path, module: str) -> list[str]:
    """Test files of the module's folder: the one of its name first, then those that name it, then the others."""
    name = _dotted(module)
    own = f"test_{name.rpartition('.')[2]}.py"

    def distance(path: Path) -> tuple[bool, bool, Path]:
        return path.name != own, not _names(path.read_text(), name), path

    files = (copy / "tests" / module.split("/")[0]).rglob("test_*.py")
    return [str(path.relative_to(copy)) for path in sorted(files, key=distance)]


def far_tests(copy: Path, module: str) -> list[str]:
    """The other test files that name the module, then those that name one which imports it, directly or not."""
    name, near = _dotted(module), set(near_tests(copy, module))
    importers = _importers(copy, name)
    files = [(str(path.relative_to(copy)), path.read_text()) for path in sorted((copy / "tests").rglob("test_*.py"))]
    known = [(file, text) for file, text in files if file not in near and any(_names(text, one) for one in importers)]
    return [file for file, _ in sorted(known, key=lambda entry: not _names(entry[1], name))]


def _dotted(module: str) -> str:
    return module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _names(text: str, name: str) -> bool:
    """Whether a file imports ``lamella.<name>``, in either way."""
    package, _, last = f"lamella.{name}".rpartition(".")
    return bool(
        re.search(rf"\blamella\.{re.escape(name)}\b", text)
        or re.search(rf"from {re.escape(package)} import [^\n]*\b{re.escape(last)}\b", text)
    )


def _importers(copy: Path, name: str) -> set[str]:
    """The module and all that import it, directly or not, by name below ``lamella``."""
    folder = copy / "src/lamella"
    texts = {_dotted(str(path.relative_to(folder))): path.read_text() for path in folder.rglob("*.py")}
    found, new = {name}, {name}
    while new:
        new = {other for other, text in texts.items() if other not in found and any(_names(text, one) for one in new)}
        found |= new
    return found


# --- testing ---------------------------------------------------------------------------------------------------------


def judged(mutation: Mutation, copy: Path, *, far: bool) -> Verdict:
    """Test a mutation in the copy, which is whole again afterwards."""
    begun = time.monotonic()
    tests = far_tests if far else near_tests
    by = _first_failure(mutation, copy, tests(copy, mutation.module))
    seconds = round(time.monotonic() - begun, 1)
    return Verdict(mutation.module, mutation.line, mutation.how, mutation.diff, by, far, seconds)


def _first_failure(mutation: Mutation, copy: Path, tests: list[str]) -> str | None:
    """The first test that fails each time, and passes on the whole module; None if all pass."""
    passed_over: list[str] = []
    while tests:
        failed = _failure(mutation, copy, [*tests, *(f"--deselect={test}" for test in passed_over)])
        if failed is None or "::" not in failed:
            return failed
        if _failure(None, copy, [failed]) is None and _failure(mutation, copy, [failed]) is not None:
            return failed
        passed_over.append(failed)
        tests = tests[tests.index(failed.partition("::")[0]) :]
    return None


def _failure(mutation: Mutation | None, copy: Path, arguments: list[str]) -> str | None:
    """The first failure of one run of pytest, with the mutation if there is one."""
    with _broken(mutation, copy):
        env = {**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        command += [f"--timeout={_TEST_SECONDS}", *arguments]
        try:
            ended = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            return f"nothing answered within {MOST_SECONDS:.0f} s"
    if ended.returncode in (0, 5):  # 5: no test was found there
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", ended.stdout, re.MULTILINE)
    return found.group(1) if found else f"pytest ended with {ended.returncode}"


@contextmanager
def _broken(mutation: Mutation | None, copy: Path) -> Iterator[None]:
    if mutation is None:
        yield
        return
    place = copy / "src/lamella" / mutation.module
    whole = place.read_text()
    place.write_text(mutation.source)
    try:
        yield
    finally:
        place.write_text(whole)


if __name__ == "__main__":
    main()
