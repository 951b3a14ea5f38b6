"""``docs/benchmarks.md``: every record in ``benchmarks/results`` as a table, losses first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.lines import Line
from benchmarks.readers import lines_of

PAGE = ROOT / "docs" / "benchmarks.md"
LOSSES = ("worse", "does not hold")
_HEAD = """# Benchmarks

Written by `make benchmarks` from the records in `benchmarks/results`; nothing here is typed by hand. A record has
commit, command, machine, versions and spread. Figures are medians unless a line says otherwise. A ratio is ours by
theirs; within 3 % of 1 it is called alike, since single runs scatter by more.

`make benchmarks` measures everything anew (most of a day), `make paper` repeats the papers' tables; `python -m
benchmarks --list` says what each claim takes and what your machine lacks for it, `--only NAME` runs one.
`scripts/benchmarks --trial` (with `--papers`: only these) runs each as short as it gets, to see that it still runs; its
figures mean nothing and are kept out of this page.
"""


@dataclass(frozen=True)
class Record:
    """One file of results, read."""

    name: str
    document: dict[str, Any]
    lines: Sequence[Line]


def read_records(folder: Path = RESULTS) -> list[Record]:
    """All records by name."""
    records = []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        records.append(Record(path.stem, document, lines_of(path.stem, document)))
    return records


def benchmarks_page(folder: Path = RESULTS) -> str:
    """The page's text."""
    records = read_records(folder)
    parts = [_HEAD, _summary(records), _losses(records), *(_section(record) for record in records)]
    return "\n".join(parts)


def write_page() -> None:
    """Bring the page up to date."""
    PAGE.write_text(benchmarks_page())


def _summary(records: Iterable[Record]) -> str:
    verdicts: list[str] = [line.verdict for record in records for line in record.lines]
    counts = [f"{verdicts.count(word)} {word}" for word in ("better", "alike", "worse")]
    kept = [f"{verdicts.count(word)} {words}" for word, words in (("holds", "hold"), ("does not hold", "do not"))]
    return f"Of all comparisons below, {', '.join(counts)}. Of all promises and papers' claims, {', '.join(kept)}.\n"


def _losses(records: Iterable[Record]) -> str:
    rows = [
        (f"[{record.name}](#{_anchor(record.name)})", line.what, line.ours, line.beside, _verdict(line))
        for record in records
        for line in record.lines
        if line.verdict in LOSSES
    ]
    return "## What is worse, and what does not hold\n\n" + _table(
        ("record", "what", "ours", "beside", "verdict"), rows
    )


def _section(record: Record) -> str:
    rows = [(line.what, line.ours, line.beside, _verdict(line)) for line in record.lines]
    table = _table(("what", "ours", "beside", "verdict"), rows) if rows else "No figures.\n"
    return f"## {record.name}\n\n{_circumstances(record)}\n\n{table}"


def _circumstances(record: Record) -> str:
    document = record.document
    machine = document.get("machine", {})
    if isinstance(machine, str):
        where = machine
    else:
        where = f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']:g} GiB"
    parts = [str(document.get("date", "")), where]
    parts += [_commit(document)] if "commit" in document else []
    parts += [f"load average {document['load_average']:g} at the end"] if "load_average" in document else []
    link = f"[record](../benchmarks/results/{record.name}.json)"
    return ", ".join(filter(None, [*parts, link])) + "."


def _commit(document: Mapping[str, Any]) -> str:
    """Where it was measured, and where that was computed again if at another one."""
    computed, measured = document["commit"], document.get("measured_at", document["commit"])
    return f"commit {measured}" + (f", computed again at {computed}" if computed != measured else "")


def _verdict(line: Line) -> str:
    return f"{line.verdict} ({line.ratio:.2f}x)" if line.ratio is not None else line.verdict


def _anchor(name: str) -> str:
    return name.lower().replace(".", "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells) + "\n"
