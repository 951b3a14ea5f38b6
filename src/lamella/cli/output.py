"""How commands speak: tables for people, one JSON document for machines, progress on the error stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from lamella.core.plain import plain

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

WIDE = 160  # columns for tables that go to a file or a pipe
stdout = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Mapping[str, Any]) -> None:
    """One document on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(plain(document)), indent=2).decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line for people on standard output; no markup is read from it."""
    stdout.print(text, markup=False)


def note(text: str) -> None:
    """A remark on the error stream."""
    stderr.print(text, markup=False, style="dim")


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; columns that start with ``>`` are right-aligned."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right)
    return made


def bar(share: float, width: int = 24) -> str:
    """A bar of blocks for a share between 0 and 1."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


@contextmanager
def progress(what: str, *, quiet: bool) -> Iterator[Callable[[float, float, str], None]]:
    """A progress bar on the error stream; yields ``update(done, total, detail)``.

    Nothing is shown when ``quiet`` or when the error stream is no terminal.
    """
    if quiet or not stderr.is_terminal:
        yield lambda _done, _total, _detail: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
    )
    with Progress(*columns, console=stderr, transient=True) as shown:
        task = shown.add_task(what, total=None, detail="")

        def update(done: float, total: float, detail: str) -> None:
            shown.update(task, completed=done, total=total or None, detail=detail)

        yield update
