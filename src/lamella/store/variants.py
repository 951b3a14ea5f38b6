"""The variants of a store: folders with a document and links, each there whole or not at all.

    variants = Variants(Layout(folder))
    variants.add(Variant("int8", plan, shards), check_shards)
    variants.read("int8")

What a variant is stands in its ``variant.json``; its links are for stock llama.cpp, and follow from that.  A variant is
replaced by one rename of that document, so whoever reads finds the old one or the new one.  Who replaces or removes one
holds a ``flock`` on its folder meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lamella.core.artifacts import Variant, from_json, to_json
from lamella.core.errors import ArtifactError, StorageFailed, StoreFormatError, UnknownVariant, VariantExists
from lamella.core.input_files import read_file
from lamella.store import locks
from lamella.store.files import (
    incoming_folder,
    is_at,
    make_folder,
    storage_errors,
    sync_file,
    sync_folder,
    take_away,
)
from lamella.store.layout import Layout, check_sha256, link_name, link_target

Version = tuple[int, int]
"""Of a variant's document: another one after the variant was replaced."""


class Variants:
    """The variants of a store.  Holds no file open."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    # reading

    def names(self) -> list[str]:
        """Names of all variants, sorted, be they readable or not."""
        with storage_errors(self._layout.variants, "read"):
            return self._layout.variant_names()

    def all(self) -> tuple[Variant, ...]:
        """All variants, by name.

        Raises:
            StoreFormatError: see ``read``.
        """
        found = []
        for name in self.names():
            with contextlib.suppress(UnknownVariant):  # removed meanwhile
                found.append(self.read(name))
        return tuple(found)

    def readable(self) -> tuple[tuple[Variant, ...], dict[str, str]]:
        """The variants that can be read, and of each other one (name -> reason) why it cannot."""
        readable, reasons = [], {}
        for name in self.names():
            try:
                readable.append(self.read(name))
            except UnknownVariant:
                continue  # removed meanwhile
            except (StoreFormatError, StorageFailed) as error:
                reasons[name] = str(error)
        return tuple(readable), reasons

    def read(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            UnknownVariant: there is none; lists those there are.
            StoreFormatError: its document is damaged or of a newer format; names it and the cure.
        """
        while True:
            before = self._state_of_folder(name)
            try:
                return self._read_document(name)
            except (ArtifactError, StoreFormatError) as error:
                if self._state_of_folder(name) == before:  # else it was removed meanwhile, or made anew
                    raise StoreFormatError(
                        f"{error}; to do without this variant, run: lamella store rm {self._layout.root} {name}"
                    ) from None

    def check_exists(self, name: str) -> None:
        """Refuse a name that no variant has; whether that variant can be read is another question.

        Raises:
            UnknownVariant: there is none; lists those there are.
        """
        if not self._layout.variant(name).is_dir():
            raise self._unknown(name)

    def version(self, name: str) -> Version:
        """What is another one once the variant was replaced.

        Raises:
            UnknownVariant: there is none.
        """
        self.check_exists(name)
        path = self._layout.variant_document(name)
        try:
            found = path.stat()
        except OSError:
            return 0, 0  # damaged, which whoever reads it will say
        return found.st_ino, found.st_ctime_ns

    def broken_links(self, variants: Sequence[Variant]) -> tuple[str, ...]:
        """Links that do not lead to their variant's shard, as ``NAME/LINK``; none of one being replaced."""
        found: list[Path] = []
        for variant in variants:
            if _broken_links(self._layout, variant):
                with contextlib.suppress(UnknownVariant), self._alone(variant.name):
                    found += _broken_links(self._layout, variant) if self._is(variant) else []
        return tuple(f"{link.parent.name}/{link.name}" for link in found)

    # adding and removing

    def add(self, variant: Variant, check_shards: Callable[[Variant], object], *, replace: bool = False) -> Variant:
        """Give a variant its place; one of that name with the same shards is returned as it is.

        Args:
            check_shards: raises if one of its shards is not there; called while none can go.
            replace: put it in the place of a variant with other contents too.

        Raises:
            VariantExists: the name is taken by other contents.
            StorageFailed: the file system refused.
        """
        target = self._layout.variant(variant.name)
        with storage_errors(target, "write"), incoming_folder(self._layout.incoming) as folder:
            _write(folder, variant)
            make_folder(target.parent)
            with locks.shared_lock(self._layout):
                check_shards(variant)
                found = self._place(folder, variant, replace=replace)
            sync_folder(target.parent)
        return found

    def remove(self, name: str) -> None:
        """Remove a variant, readable or not.  The caller holds the store's lock, shared.

        Raises:
            UnknownVariant: there is none of that name.
            StorageFailed: the file system refused.
        """
        folder = self._layout.variant(name)
        with storage_errors(folder, "remove"):
            self.check_exists(name)
            try:
                take_away(folder, self._layout.incoming)
            except FileNotFoundError:
                raise self._unknown(name) from None  # somebody else was faster

    def mend_links(self, variant: Variant) -> tuple[str, ...]:
        """Make the links what the variant's document says; returns those that were otherwise, as ``NAME/LINK``.

        One that was removed or replaced meanwhile is left alone.
        """
        target = self._layout.variant(variant.name)
        if not _broken_links(self._layout, variant):
            return ()  # a store that may only be read will do
        with (
            storage_errors(target, "write"),
            incoming_folder(self._layout.incoming) as folder,
            contextlib.suppress(UnknownVariant),
            self._alone(variant.name),
        ):
            broken = _broken_links(self._layout, variant) if self._is(variant) else []
            _write(folder, variant)
            for link in broken:
                (folder / link.name).rename(link)
            sync_folder(target)
            return tuple(f"{variant.name}/{link.name}" for link in broken)
        return ()

    # details

    def _place(self, folder: Path, variant: Variant, *, replace: bool) -> Variant:
        wanted = from_json(Variant, to_json(variant), str(folder))  # as readers find it
        while True:
            try:
                folder.rename(self._layout.variant(variant.name))  # refused if there is one: exactly one writer wins
                return wanted
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            with contextlib.suppress(UnknownVariant):  # removed meanwhile, so the name is free
                if not replace:
                    return self._same_variant(wanted)
                self._put_over(folder, wanted)
                return wanted

    def _same_variant(self, wanted: Variant) -> Variant:
        found = self.read(wanted.name)
        if [shard.id for shard in found.shards] != [shard.id for shard in wanted.shards]:
            raise variant_exists(self._layout.root, found)
        return found

    def _put_over(self, folder: Path, wanted: Variant) -> None:
        """Replace the variant of that name, if it is another: the document at once, then link by link.

        Raises:
            UnknownVariant: it was removed meanwhile.
        """
        target = self._layout.variant(wanted.name)
        with self._alone(wanted.name):
            if not self._is(wanted):
                (folder / "variant.json").rename(target / "variant.json")
            for link in _broken_links(self._layout, wanted):
                (folder / link.name).rename(link)
            sync_folder(target)

    def _is(self, wanted: Variant) -> bool:
        try:
            return self.read(wanted.name) == wanted
        except StoreFormatError:
            return False

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody else replaces or removes the variant while the block runs.

        Raises:
            UnknownVariant: it is gone.
        """
        folder = self._layout.variant(name)
        try:
            fd = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            raise self._unknown(name) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not is_at(fd, folder):
                raise self._unknown(name)
            yield
        finally:
            os.close(fd)

    def _read_document(self, name: str) -> Variant:
        path = self._layout.variant_document(name)
        with storage_errors(path, "read"):
            try:
                data = read_file(path)
            except FileNotFoundError:
                raise StoreFormatError(f"{path} is missing") from None
        variant = from_json(Variant, data, str(path))
        if variant.name != name or not variant.shards:
            raise StoreFormatError(f"{path} describes the variant {variant.name!r} of {len(variant.shards)} shards")
        for shard in variant.shards:
            check_sha256(shard.id, f"{path}: shard id")
        return variant

    def _state_of_folder(self, name: str) -> tuple[int, int]:
        """What changes when a variant is removed, replaced, or removed and made anew.

        Raises:
            UnknownVariant: there is none.
        """
        try:
            found = self._layout.variant(name).stat()
        except FileNotFoundError:
            raise self._unknown(name) from None
        return found.st_ino, found.st_ctime_ns

    def _unknown(self, name: str) -> UnknownVariant:
        there = ", ".join(self._layout.variant_names()) or "none"
        return UnknownVariant(f"{self._layout.root} has no variant '{name}'; there are: {there}")


def variant_exists(store: Path, found: Variant) -> VariantExists:
    """The refusal of a name that is taken.

    Args:
        store: its folder.
    """
    return VariantExists(
        f"{store} has a variant '{found.name}' with other contents ({found.plan.policy}, "
        f"{found.plan.average_bits:.2f} bits on average): remove it first, choose another name, or replace it "
        "(--replace of build and pull)"
    )


def _broken_links(layout: Layout, variant: Variant) -> list[Path]:
    """Links of a variant's folder that do not lead to its shards."""
    broken = []
    for number, shard in enumerate(variant.shards):
        link = layout.variant(variant.name) / link_name(variant.name, number, len(variant.shards))
        if not _leads_to(link, link_target(shard.id)):
            broken.append(link)
    return broken


def _leads_to(link: Path, target: str) -> bool:
    try:
        return str(link.readlink()) == target
    except OSError:  # no link, or none there
        return False


def _write(folder: Path, variant: Variant) -> None:
    document = folder / "variant.json"
    document.write_bytes(to_json(variant))
    sync_file(document)
    for number, shard in enumerate(variant.shards):
        (folder / link_name(variant.name, number, len(variant.shards))).symlink_to(link_target(shard.id))
    sync_folder(folder)
