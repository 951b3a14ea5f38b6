"""One line about what interrupted work left in a store, and what to do about it."""

from __future__ import annotations

from lamella.cli.output import note
from lamella.core.units import format_bytes
from lamella.store.leftovers import Leftovers
from lamella.store.store import Store


def note_leftovers(store: Store) -> None:
    """Say it on the error stream, if there is anything."""
    text = describe_leftovers(store.leftovers())
    if text:
        note(f"{text}; finish it by building again, or free the space with: lamella store gc {store.path}")


def describe_leftovers(found: Leftovers) -> str:
    """For example ``interrupted work left 3 unfinished files (12.0 MiB)``; empty if nothing was left."""
    parts = []
    if found.n_files:
        parts.append(f"{_count(found.n_files, 'unfinished file')} ({format_bytes(found.file_bytes)})")
    if found.n_shards:
        parts.append(f"{_count(found.n_shards, 'shard')} ({format_bytes(found.shard_bytes)}) that no variant uses")
    if not parts:
        return ""
    return ("interrupted work left " if found.is_interrupted else "in the store: ") + " and ".join(parts)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
