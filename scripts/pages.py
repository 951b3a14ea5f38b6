"""The pages of the documentation that are made of something else, and never written by hand.

    python -m scripts.pages            # writes those that are stale
    python -m scripts.pages --check    # names them and ends with 1

``docs/commands.md`` is what ``--help`` says, ``docs/benchmarks.md`` what ``benchmarks/results`` says, ``docs/links.md``
every address outside that a page or the README leads to.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from benchmarks.page import benchmarks_page
from lamella.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WIDTH = 100
"""Columns of the help on the page.  On a terminal it has as many as that has, at most 80."""
_ADDRESS = re.compile(r"https?://[^\s<>()\[\]\"'`]+[^\s<>()\[\]\"'`.,;:]")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_NOT_LINKS = ("127.0.0.1", "localhost", "http://host:", "https://host")


def commands_page() -> str:
    """Every command with what ``--help`` prints for it."""
    parts = [
        "# Every option\n\nWhat `lamella COMMAND --help` prints. What the commands mean together, exit codes and the "
        "environment: [command line](cli.md).\n"
    ]
    for name, text in help_texts():
        parts.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def help_texts() -> Iterator[tuple[str, str]]:
    """Each command's full name and its help, in the order of ``lamella --help``; groups before what is in them."""
    root = typer.main.get_command(app)
    yield from _help_below(root, None, "lamella")


def _help_below(command: Any, parent: Any, name: str) -> Iterator[tuple[str, str]]:
    context = command.context_class(
        command, info_name=name.split()[-1], parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield name, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    for inner in command.list_commands(context) if hasattr(command, "list_commands") else ():
        known = command.get_command(context, inner)
        if not known.hidden:
            yield from _help_below(known, context, f"{name} {inner}")


def links_page() -> str:
    """Every address outside, once, with the pages that name it."""
    found: dict[str, set[str]] = {}
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        if path.name == "links.md":
            continue
        for address in external_links(path.read_text()):
            name = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else ""
            found.setdefault(address, set()).add(f"[{name}]({name})" if name else "README")
    rows = [f"| <{address}> | {', '.join(sorted(pages))} |" for address, pages in sorted(found.items())]
    head = "# External links\n\nAll addresses outside of this site, and the pages that name them.\n"
    return "\n".join([head, "| address | named by |", "| --- | --- |", *rows, ""])


def external_links(markdown: str) -> set[str]:
    """Addresses in a page's running text: not those in code, nor those of a reader's own machine."""
    text = re.sub(r"`[^`\n]+`", "", _FENCE.sub("", markdown))
    return {address for address in _ADDRESS.findall(text) if not any(part in address for part in _NOT_LINKS)}


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "benchmarks.md": benchmarks_page,
    "links.md": links_page,
}
"""In this order: the last one reads the others."""


def stale_pages() -> list[str]:
    """The generated pages that are not what they are made of."""
    return [name for name, make in PAGES.items() if _text(DOCS / name) != make()]


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def main(arguments: list[str]) -> int:
    """Write, or with ``--check`` only name, what is stale."""
    if "--check" in arguments:
        stale = stale_pages()
        if stale:
            sys.stderr.write(f"stale: {', '.join(stale)}; python -m scripts.pages writes them\n")
        return bool(stale)
    for name, make in PAGES.items():
        (DOCS / name).write_text(make())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
