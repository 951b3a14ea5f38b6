"""A variant's shards joined to one GGUF file, for llama.cpp, Ollama, LM Studio and whatever else reads GGUF.

    report = export_variant(store, "six-gib", Path("six-gib.gguf"))

Shards are copied in pieces, so a file of any size passes through one mebibyte, and hashed on the way, so a damaged
shard never becomes part of a file that looks whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.errors import InvalidRequest, ModelError, ShardDamaged
from lamella.exchange.metadata import Description, describe, write_description
from lamella.llama.gguf import Header, TensorData, read_tensors
from lamella.store.files import new_file, pieces
from lamella.store.store import Store
from lamella.store.verify import describe as describe_damage

OnProgress = Callable[[int, int, str], None]
"""(bytes done, of how many, what is being read)."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        n_bytes: size of the file.
        seconds: from call to the file in its place.
    """

    variant: Variant
    path: Path
    n_bytes: int
    file_type: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Part:
    """A shard on its way into the file: its header stays behind, its tensors follow those of the shard before."""

    shard: ShardRef
    path: Path
    tensors: tuple[TensorData, ...]

    @property
    def data_offset(self) -> int:
        """Where the data begins that is copied: all of it, padding included, which shards and files have alike."""
        return self.tensors[0].offset if self.tensors else self.shard.n_bytes

    @property
    def data_bytes(self) -> int:
        return self.shard.n_bytes - self.data_offset


def export_variant(
    store: Store,
    name: str,
    target: Path,
    *,
    force: bool = False,
    on_progress: OnProgress = lambda _done, _total, _what: None,
) -> ExportReport:
    """Write a variant as one GGUF file that says what it is (docs/artifacts.md, "Exported file").

    Args:
        target: the file; in its folder it grows under a hidden name and is there whole or not at all.
        force: replace a file of that name.

    Raises:
        UnknownVariant: there is none of that name.
        ShardDamaged: a shard's bytes are not those it is named for; nothing is left behind.
        InvalidRequest: the file exists, or would stand inside the store.
        StorageFailed: no room (found out first), or the file system refused.
    """
    started = time.perf_counter()
    if target.resolve().is_relative_to(store.path.resolve()):
        raise InvalidRequest(f"{target} would stand inside the store {store.path}; export to another folder")
    with store.lease(reading=True) as lease:
        variant = lease.hold(name)
        paths = store.ready_paths(variant)
        parts = [_part(variant, shard, path) for shard, path in zip(variant.shards, paths, strict=True)]
        description = describe(store.identity, variant, (t for part in parts for t in part.tensors))
        start = _header(parts, description)
        n_bytes = len(start) + sum(part.data_bytes for part in parts)
        with new_file(target, n_bytes, replace=force) as file:
            file.write(start)
            _copy(variant, parts, file, on_progress)
    return ExportReport(variant, target, n_bytes, description.file_type, time.perf_counter() - started)


def _part(variant: Variant, shard: ShardRef, path: Path) -> _Part:
    try:
        return _Part(shard, path, tuple(read_tensors(path).values()))
    except ModelError as error:
        raise ShardDamaged(describe_damage(shard, [variant.name], str(error))) from None


def _header(parts: Sequence[_Part], description: Description) -> bytes:
    with Header.empty() as header, Header.open(parts[0].path) as meta:
        header.copy_metadata_from(meta)
        write_description(header, description)
        return header.serialise([(t.spec, t.spec.type_name) for part in parts for t in part.tensors])


def _copy(variant: Variant, parts: Sequence[_Part], file: BinaryIO, on_progress: OnProgress) -> None:
    n_done = 0
    for part in parts:
        digest, to_skip = hashlib.sha256(), part.data_offset
        for piece in pieces(part.path):
            digest.update(piece)
            file.write(piece[to_skip:])
            to_skip = max(0, to_skip - len(piece))
            n_done += len(piece)
            on_progress(n_done, variant.n_bytes, part.shard.label)
        if digest.hexdigest() != part.shard.id:
            reason = f"its SHA-256 is {digest.hexdigest()}"
            raise ShardDamaged(describe_damage(part.shard, [variant.name], reason))
