"""Names and places inside a store (docs/store-format.md).

    Layout(Path("smollm2.store")).shard("ab12...")     # smollm2.store/shards/ab/ab12....gguf

Every name that comes from outside (a command line, a document in the store) passes through here before it becomes a
path, so nothing can lead out of the store.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import InvalidRequest, StoreFormatError

STORE_FORMAT = "lamella.store"
RECIPE_FORMAT = "lamella.recipe"
FORMAT_VERSION = 1
CLAIM_SUFFIX = ".claim"
_DOCUMENTS = ("store.json", "quota.json", "lock")
_PASSING = ("incoming", "leases")
"""Folders whose entries are made under new names, opened without following links, and removed, link and not target."""
_KEPT = ("shards", "variants", "recipes", "pins", "use", "dropped", "origins", "sources", "importance", "digests")
_NESTED = ("shards", "variants", "recipes", "dropped", "origins")
"""Those whose entries are folders, with the files in them."""

_VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LEASE_NAME = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINK_TARGET = re.compile(r"\.\./\.\./shards/[0-9a-f]{2}/[0-9a-f]{64}\.gguf")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the store at ``root``."""

    root: Path

    @property
    def document(self) -> Path:
        return self.root / "store.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def variants(self) -> Path:
        return self.root / "variants"

    def shard(self, shard_id: str) -> Path:
        return self.root / "shards" / shard_id[:2] / f"{check_sha256(shard_id, 'shard id')}.gguf"

    def recipe(self, recipe_id: str) -> Path:
        return self.root / "recipes" / recipe_id[:2] / f"{check_sha256(recipe_id, 'recipe id')}.json"

    def variant(self, name: str) -> Path:
        return self.variants / check_variant_name(name)

    def variant_document(self, name: str) -> Path:
        return self.variant(name) / "variant.json"

    def claim(self, recipe_id: str) -> Path:
        return self.incoming / f"{check_sha256(recipe_id, 'recipe id')}{CLAIM_SUFFIX}"

    def lease_files(self) -> list[Path]:
        """Every lease, of the living and of the dead."""
        if not self.leases.is_dir():
            return []
        return sorted(path for path in self.leases.iterdir() if _LEASE_NAME.fullmatch(path.name))

    def link_outside(self) -> Path | None:
        """A folder of the store, a file in one, or a document that is a link to somewhere else, if there is one.

        Whoever packed a store may have laid such links; what is written into it or deleted from it would be so there.
        """
        root = os.path.realpath(self.root)
        outside = (path for path in self._links(root) if not Path(os.path.realpath(path)).is_relative_to(root))
        return next(outside, None)

    def _links(self, root: str) -> Iterator[Path]:
        """Links, those on the way to others first; without the links for stock llama.cpp that are as they should be."""
        yield from (path for name in (*_DOCUMENTS, *_PASSING, *_KEPT) if (path := self.root / name).is_symlink())
        for name in _KEPT:
            for entry in _entries(self.root / name):
                if entry.is_symlink():
                    yield Path(entry.path)
                if name in _NESTED:
                    is_variant = name == "variants" and os.path.realpath(entry.path) == f"{root}/variants/{entry.name}"
                    yield from (Path(file.path) for file in _entries(entry.path) if _is_strange(file, is_variant))

    def is_inside(self, path: Path) -> bool:
        """Whether a path below the root leads to something below it, whatever links there are on the way."""
        return path.resolve().is_relative_to(self.root.resolve())

    # what is noted about keeping (``state``) and getting back (``sources``, ``origins``)

    @property
    def quota(self) -> Path:
        return self.root / "quota.json"

    def pin(self, variant: str) -> Path:
        return self.root / "pins" / f"{check_variant_name(variant)}.json"

    def use(self, variant: str) -> Path:
        return self.root / "use" / check_variant_name(variant)

    def dropped(self, shard_id: str) -> Path:
        return self.root / "dropped" / shard_id[:2] / f"{check_sha256(shard_id, 'shard id')}.json"

    def origin(self, shard_id: str) -> Path:
        return self.root / "origins" / shard_id[:2] / f"{check_sha256(shard_id, 'shard id')}.json"

    def source(self, weights: str) -> Path:
        return self.root / "sources" / f"{check_sha256(weights, 'identity of weights')}.json"

    def importance(self, used: str) -> Path:
        return self.root / "importance" / f"{check_sha256(used, 'hash of an importance matrix')}.gguf"

    def digests(self, shard_id: str) -> Path:
        return self.root / "digests" / f"{check_sha256(shard_id, 'shard id')}.json"

    def shard_files(self) -> Iterator[tuple[str, Path]]:
        """(id, path) of every shard there is; files of other names are no shards and are left alone."""
        yield from _content_named(self.root / "shards", ".gguf")

    def recipe_files(self) -> Iterator[tuple[str, Path]]:
        yield from _content_named(self.root / "recipes", ".json")

    def dropped_files(self) -> Iterator[tuple[str, Path]]:
        """(id, path) of what is noted of every shard that was dropped."""
        yield from _content_named(self.root / "dropped", ".json")

    def origin_files(self) -> Iterator[tuple[str, Path]]:
        """(id, path) of what is noted of every shard that was pulled."""
        yield from _content_named(self.root / "origins", ".json")

    def digest_files(self) -> Iterator[tuple[str, Path]]:
        """(shard id, path) of every note of where the tensors of a shard are, by their digests."""
        yield from _named(self.root / "digests", "*.json", _SHA256)

    def importance_files(self) -> Iterator[tuple[str, Path]]:
        """(hash, path) of every importance matrix that is kept."""
        yield from _named(self.root / "importance", "*.gguf", _SHA256)

    def source_files(self) -> Iterator[tuple[str, Path]]:
        """(weights, path) of what is noted of every source."""
        yield from _named(self.root / "sources", "*.json", _SHA256)

    def pin_files(self) -> Iterator[tuple[str, Path]]:
        """(variant, path) of every pin."""
        yield from _named(self.root / "pins", "*.json", _VARIANT_NAME)

    def use_files(self) -> Iterator[tuple[str, Path]]:
        """(variant, path) of every file that is touched when its variant is used."""
        yield from _named(self.root / "use", "*", _VARIANT_NAME)

    def variant_names(self) -> list[str]:
        """Names of the variants there are, sorted; folders of other names are no variants."""
        if not self.variants.is_dir():
            return []
        return sorted(p.name for p in self.variants.iterdir() if p.is_dir() and _VARIANT_NAME.fullmatch(p.name))


def link_name(variant: str, number: int, n_shards: int) -> str:
    """Name of shard ``number`` (from 0) in a variant's folder: llama.cpp's pattern for split files, counting from 1."""
    return f"{variant}-{number + 1:05d}-of-{n_shards:05d}.gguf"


def link_target(shard_id: str) -> str:
    """What the link in ``variants/NAME/`` points to; relative, so that a store may be moved."""
    return f"../../shards/{shard_id[:2]}/{check_sha256(shard_id, 'shard id')}.gguf"


def check_variant_name(name: str) -> str:
    """The name, if it can be one.

    Raises:
        InvalidRequest: it cannot.
    """
    if not _VARIANT_NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{name}' cannot name a variant: 1 to 64 letters, digits, dots, underscores or hyphens, "
            "starting with a letter or digit"
        )
    return name


def check_sha256(text: str, what: str) -> str:
    """The text, if it is 64 lower-case hexadecimal digits.

    Raises:
        StoreFormatError: it is not; names ``what``.
    """
    if not _SHA256.fullmatch(text):
        raise StoreFormatError(f"{what} {text!r} is no SHA-256")
    return text


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Of a folder; nothing of what is none, has gone, or is a link to itself."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise


def _is_strange(file: os.DirEntry[str], in_variant: bool) -> bool:
    """Whether it is a link, and not one from a variant's folder to a place of a shard."""
    if not (file.is_symlink() and in_variant):
        return file.is_symlink()
    try:
        return not _LINK_TARGET.fullmatch(str(Path(file.path).readlink()))
    except FileNotFoundError:  # the variant has been removed meanwhile
        return False


def _content_named(folder: Path, suffix: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob(f"??/*{suffix}")):
        name = path.name.removesuffix(suffix)
        if _SHA256.fullmatch(name) and path.parent.name == name[:2]:
            yield name, path


def _named(folder: Path, pattern: str, name: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob(pattern)):
        stem = path.name.removesuffix(pattern.lstrip("*"))
        if name.fullmatch(stem):
            yield stem, path
