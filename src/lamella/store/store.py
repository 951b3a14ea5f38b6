"""``Store``: one model's shards and the variants made of them.

    store = Store.open(Path("smollm2.store"))
    for variant in store.variants():
        print(variant.name, variant.n_bytes)
    paths = store.shard_paths(store.variant("int8"))     # what llama_model_load_from_splits takes

Readers never write.  Every document is checked when it is read; nothing in one can name a place outside the store.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import msgspec

from lamella.core.artifacts import Plan, ShardRef, Variant, from_json, to_json
from lamella.core.errors import (
    ArtifactError,
    ShardDamaged,
    StorageFailed,
    StoreError,
    StoreFormatError,
    UnknownVariant,
    VariantExists,
)
from lamella.core.model import ModelIdentity
from lamella.store import gc, locks, verify
from lamella.store.claims import Claims
from lamella.store.files import (
    incoming_folder,
    make_folder,
    storage_errors,
    stored_bytes,
    sync_file,
    sync_folder,
    take_away,
    write_atomically,
)
from lamella.store.layout import (
    FORMAT_VERSION,
    RECIPE_FORMAT,
    STORE_FORMAT,
    Layout,
    check_sha256,
    check_variant_name,
    link_name,
    link_target,
)
from lamella.store.leases import Lease, leased_shards
from lamella.store.leftovers import Leftovers, find_leftovers
from lamella.store.usage import Usage, measure_usage
from lamella.version import __version__

_OWN_NAMES = {"lock", "incoming"}  # what another process that creates the same store may have made already


class Store:
    """An opened store.  Holds no file open; safe to use from several threads and processes.

    Attributes:
        identity: the one model it holds.
    """

    def __init__(self, layout: Layout, identity: ModelIdentity) -> None:
        self._layout = layout
        self.identity = identity

    @property
    def path(self) -> Path:
        return self._layout.root

    # opening

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store at ``path``.

        Raises:
            StoreFormatError: no store, or one of a newer format, which is left untouched.
            StorageFailed: it cannot be read.
        """
        layout = Layout(path)
        with storage_errors(layout.document, "read"):
            try:
                data = layout.document.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                raise StoreFormatError(f"{path} is no store: it has no store.json") from None
        return cls(layout, read_identity(data, layout.document))

    @classmethod
    def create(cls, path: Path, identity: ModelIdentity) -> Self:
        """Create a store for a model, or open the one that is there.  Two processes may do so at once.

        Raises:
            StoreError: the store holds another model, or ``identity`` is of a specification without weights.
            StoreFormatError: the folder holds something else, or a store of a newer format.
            StorageFailed: the file system refused.
        """
        layout = Layout(path)
        if not identity.weights:
            raise StoreError(f"{identity.name} is a specification without weights; a store needs a model file")
        if not layout.document.exists():
            _create(layout, identity)
        store = cls.open(path)
        store.check_same_model(identity)
        return store

    def check_same_model(self, identity: ModelIdentity) -> None:
        """Refuse a model that is not the store's.

        Raises:
            StoreError: architecture, structure or weights differ.
        """
        mine = self.identity
        if (mine.structure, mine.weights) == (identity.structure, identity.weights):
            return
        what = "other weights of the same structure" if mine.structure == identity.structure else "another structure"
        raise StoreError(
            f"{self.path} holds {mine.name} ({mine.architecture}), not {identity.name} ({identity.architecture}): "
            f"{what}. One store, one model"
        )

    def lease(self, *, reading: bool = False) -> Lease:
        """What to rely on shards under: those that the lease holds are not collected until it is closed.

        Args:
            reading: nothing will be written, so that a store which may only be read will do.

        Raises:
            StorageFailed: the store cannot be written, and not only ``reading`` is asked for.
        """
        return Lease(self, self._layout, reading=reading)

    def claims(self) -> Claims:
        """What to make shards under: those that others make are waited for, not made twice."""
        return Claims(self._layout)

    # reading

    def variant_names(self) -> list[str]:
        """Names of all variants, sorted, be they readable or not."""
        with storage_errors(self._layout.variants, "read"):
            return self._layout.variant_names()

    def variants(self) -> tuple[Variant, ...]:
        """All variants, by name; use ``readable_variants`` where a damaged one must not be in the way.

        Raises:
            StoreFormatError: a variant's document is damaged or of a newer format; names it and the cure.
        """
        found = []
        for name in self.variant_names():
            with contextlib.suppress(UnknownVariant):  # removed meanwhile
                found.append(self.variant(name))
        return tuple(found)

    def readable_variants(self) -> tuple[tuple[Variant, ...], dict[str, str]]:
        """The variants that can be read, and of each other one (name -> reason) why it cannot."""
        readable, reasons = [], {}
        for name in self.variant_names():
            try:
                readable.append(self.variant(name))
            except UnknownVariant:
                continue  # removed meanwhile
            except (StoreFormatError, StorageFailed) as error:
                reasons[name] = str(error)
        return tuple(readable), reasons

    def check_variant_exists(self, name: str) -> None:
        """Refuse a name that no variant has; whether that variant can be read is another question.

        Raises:
            UnknownVariant: there is none; lists those there are.
        """
        if not self._layout.variant(name).is_dir():
            raise self._unknown(name)

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            UnknownVariant: there is none; lists those there are.
            StoreFormatError: its document is damaged or of a newer format; names it and the cure.
        """
        while True:
            before = self._state_of_folder(name)
            try:
                return self._read_variant(name)
            except (ArtifactError, StoreFormatError) as error:
                if self._state_of_folder(name) == before:  # else it was removed meanwhile, or made anew
                    raise StoreFormatError(
                        f"{error}; to do without this variant, run: lamella store rm {self.path} {name}"
                    ) from None

    def shard_path(self, shard_id: str) -> Path:
        """Where that shard stands, or would stand."""
        return self._layout.shard(shard_id)

    def has_shard(self, shard: ShardRef) -> bool:
        """Whether that shard is there in its full size; its bytes are not read."""
        return self._quick_damage(shard) is None

    def shard_paths(self, variant: Variant) -> tuple[Path, ...]:
        """The variant's files in split order, as ``llama_model_load_from_splits`` takes them.

        Raises:
            ShardDamaged: one is missing or has another size.
        """
        for shard in variant.shards:
            reason = self._quick_damage(shard)
            if reason:
                raise ShardDamaged(verify.describe(shard, [variant.name], reason))
        return tuple(self._layout.shard(shard.id) for shard in variant.shards)

    def first_link(self, name: str) -> Path:
        """The file to give to stock llama.cpp: it finds the other parts by their names."""
        return self._layout.variant(name) / link_name(name, 0, len(self.variant(name).shards))

    def check(self, variant: Variant, on_progress: verify.OnProgress | None = None) -> None:
        """Hash all shards of a variant.  The caller holds a lease on them.

        Raises:
            ShardDamaged: one has other contents than its name says; names it and every variant that needs it.
        """
        self.shard_paths(variant)
        damage = verify.find_damage({s.id: self._layout.shard(s.id) for s in variant.shards}, on_progress)
        for shard in variant.shards:
            if shard.id in damage:
                users = verify.users_of(shard.id, self.readable_variants()[0])
                raise ShardDamaged(verify.describe(shard, users, damage[shard.id]))

    def verify(self, on_progress: verify.OnProgress | None = None) -> verify.VerifyReport:
        """Hash every shard of the store, on all cores.

        Raises:
            StorageFailed: a shard cannot be read.
        """
        with self.lease(reading=True) as lease:
            return verify.verify(self._layout, *lease.hold_everything(), on_progress)

    def usage(self) -> Usage:
        """What the variants take together and alone."""
        with storage_errors(self.path, "read"):
            n_bytes = sum(stored_bytes(path) for _, path in self._layout.shard_files())
        return measure_usage(self.variants(), n_bytes)

    def leftovers(self) -> Leftovers:
        """What work that ended early left; shards only if all variants and leases can be read.

        Raises:
            StorageFailed: the store cannot be read.
        """
        with storage_errors(self.path, "read"), locks.shared_lock(self._layout):
            variants, reasons = self.readable_variants()
            needed = {shard.id for variant in variants for shard in variant.shards}
            try:
                needed |= leased_shards(self._layout)
            except StoreFormatError:
                return find_leftovers(self._layout, None)
            return find_leftovers(self._layout, None if reasons else needed)

    # building

    def recall(self, recipe_id: str) -> ShardRef | None:
        """The shard that a recipe once made, if it is still there in its full size.  ``Lease.recall`` also keeps it."""
        shard = self._read_recipe(recipe_id)
        return None if shard is None or self._quick_damage(shard) else shard

    def remember(self, recipe_id: str, recipe: Mapping[str, Any], shard: ShardRef) -> None:
        """Note which shard a recipe made, so that it need not be made again."""
        document = {
            "format": RECIPE_FORMAT,
            "format_version": FORMAT_VERSION,
            "tool_version": __version__,
            "recipe": recipe,
            "shard": asdict(shard),
        }
        target = self._layout.recipe(recipe_id)
        with locks.shared_lock(self._layout):  # else a running gc could take it for a recipe of no shard
            write_atomically(self._layout.incoming, target, _to_json(document), durable=False)  # a cache

    def add_variant(self, name: str, plan: Plan, shards: Sequence[ShardRef]) -> Variant:
        """Make a variant of shards that are in the store.  The caller holds a lease on them.

        A variant of that name with the same shards is returned as it is.

        Raises:
            VariantExists: the name is taken by other contents.
            ShardDamaged: a shard is not there, or not in its full size.
            StorageFailed: the file system refused.
        """
        variant = Variant(check_variant_name(name), plan, tuple(shards))
        target = self._layout.variant(name)
        with storage_errors(target, "write"), incoming_folder(self._layout.incoming) as folder:
            _write_variant(folder, variant)
            make_folder(target.parent)
            with locks.shared_lock(self._layout):
                self.shard_paths(variant)  # a variant that lacks a shard never comes to be
                found = self._place_variant(folder, variant)
            sync_folder(target.parent)
        return found

    # removing

    def remove(self, name: str) -> None:
        """Remove a variant, readable or not.  Its shards stay until ``collect_garbage``.

        Raises:
            UnknownVariant: there is none of that name.
            StorageFailed: the file system refused.
        """
        folder = self._layout.variant(name)
        with storage_errors(folder, "remove"), locks.shared_lock(self._layout):
            self.check_variant_exists(name)
            try:
                take_away(folder, self._layout.incoming)
            except FileNotFoundError:
                raise self._unknown(name) from None  # somebody else was faster

    def collect_garbage(self) -> gc.GarbageReport:
        """Remove shards and recipes that neither a variant nor a living lease needs, and what the dead left.

        May be called while others build, load and run.

        Raises:
            StoreBusy: a loader that cannot write a lease took longer than ``locks.LONGEST_WAIT_S``.
            StoreFormatError: a variant or a lease cannot be read, so what it needs is not known; names the cure.
        """
        with locks.exclusive_lock(self._layout):
            self._refuse_unreadable()
            needed = {shard.id for variant in self.variants() for shard in variant.shards}
            with storage_errors(self._layout.leases, "read"):
                needed |= leased_shards(self._layout)
            made = {recipe_id: self._read_recipe(recipe_id) for recipe_id, _ in self._layout.recipe_files()}
            return gc.collect(self._layout, needed, {i: shard.id if shard else None for i, shard in made.items()})

    # details

    def _read_variant(self, name: str) -> Variant:
        path = self._layout.variant_document(name)
        with storage_errors(path, "read"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise StoreFormatError(f"{path} is missing") from None
        variant = from_json(Variant, data, str(path))
        if variant.name != name or not variant.shards:
            raise StoreFormatError(f"{path} describes the variant {variant.name!r} of {len(variant.shards)} shards")
        for shard in variant.shards:
            check_sha256(shard.id, f"{path}: shard id")
        return variant

    def _state_of_folder(self, name: str) -> tuple[int, int]:
        """What changes when a variant is removed, or removed and made anew.

        Raises:
            UnknownVariant: there is none.
        """
        try:
            found = self._layout.variant(name).stat()
        except FileNotFoundError:
            raise self._unknown(name) from None
        return found.st_ino, found.st_ctime_ns

    def _refuse_unreadable(self) -> None:
        _, reasons = self.readable_variants()
        if reasons:
            raise StoreFormatError(
                f"nothing was deleted, because it is not known what {', '.join(reasons)} needs: "
                + "; ".join(reasons.values())
            )

    def _unknown(self, name: str) -> UnknownVariant:
        there = ", ".join(self._layout.variant_names()) or "none"
        return UnknownVariant(f"{self.path} has no variant '{name}'; there are: {there}")

    def _quick_damage(self, shard: ShardRef) -> str | None:
        """What can be seen without reading the shard: whether it is there, in its full size."""
        path = self._layout.shard(shard.id)
        with storage_errors(path, "read"):
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                return "missing"
        return None if found == shard.n_bytes else f"it has {found} bytes instead of {shard.n_bytes}"

    def _read_recipe(self, recipe_id: str) -> ShardRef | None:
        """The shard a recipe names; None if there is no such recipe or it cannot be read (a recipe is a cache)."""
        path = self._layout.recipe(recipe_id)
        with contextlib.suppress(OSError, StoreFormatError, msgspec.ValidationError):
            document = _read_document(path.read_bytes(), RECIPE_FORMAT, path)
            shard = msgspec.convert(document.get("shard"), ShardRef)
            check_sha256(shard.id, f"{path}: shard id")
            return shard
        return None

    def _place_variant(self, folder: Path, variant: Variant) -> Variant:
        while True:
            try:
                folder.rename(self._layout.variant(variant.name))  # refused if there is one: exactly one writer wins
                return from_json(Variant, to_json(variant), str(folder))  # as readers find it
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            with contextlib.suppress(UnknownVariant):  # removed meanwhile, so the name is free
                return self._same_variant(variant)

    def _same_variant(self, wanted: Variant) -> Variant:
        found = self.variant(wanted.name)
        if [shard.id for shard in found.shards] != [shard.id for shard in wanted.shards]:
            raise variant_exists(self, found)
        return found


def variant_exists(store: Store, found: Variant) -> VariantExists:
    return VariantExists(
        f"{store.path} has a variant '{found.name}' with other contents "
        f"({found.plan.policy}, {found.plan.average_bits:.2f} bits on average): remove it first, or choose another name"
    )


def read_identity(data: bytes, source: Path | str) -> ModelIdentity:
    """The model that a ``store.json`` names.

    Args:
        source: where it is from, for errors.

    Raises:
        StoreFormatError: no such document, or one of a newer format.
    """
    document = _read_document(data, STORE_FORMAT, source)
    try:
        return msgspec.convert(document.get("model"), ModelIdentity)
    except msgspec.ValidationError as error:
        raise StoreFormatError(f"{source}: {error}") from None


def store_document(identity: ModelIdentity) -> bytes:
    """``store.json`` of a store for that model."""
    return _to_json(
        {
            "format": STORE_FORMAT,
            "format_version": FORMAT_VERSION,
            "tool_version": __version__,
            "model": asdict(identity),
        }
    )


def check_place_for_store(path: Path) -> None:
    """Refuse a place where no store can be made; what does not exist yet is a good one.

    Raises:
        StoreFormatError: a file, or a folder with other things in it.
    """
    layout = Layout(path)
    with storage_errors(path, "read"):
        try:
            names = {entry.name for entry in path.iterdir()}
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise StoreFormatError(f"{path} is a file; a store is a folder") from None
    if names - _OWN_NAMES and not layout.document.exists():
        raise StoreFormatError(f"{path} is no store and not empty: {', '.join(sorted(names)[:3])}")


def _create(layout: Layout, identity: ModelIdentity) -> None:
    check_place_for_store(layout.root)
    with storage_errors(layout.root, "create"):
        make_folder(layout.root)
    with locks.exclusive_lock(layout):  # two creators: the second finds the first one's document
        if not layout.document.exists():
            write_atomically(layout.incoming, layout.document, store_document(identity))


def _write_variant(folder: Path, variant: Variant) -> None:
    document = folder / "variant.json"
    document.write_bytes(to_json(variant))
    sync_file(document)
    for number, shard in enumerate(variant.shards):
        (folder / link_name(variant.name, number, len(variant.shards))).symlink_to(link_target(shard.id))
    sync_folder(folder)


def _read_document(data: bytes, expected: str, path: Path | str) -> dict[str, Any]:
    """A JSON document of the store, its format and version checked before anything else."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise StoreFormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != expected:
        raise StoreFormatError(f"{path} is no {expected} document")
    version = document.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise StoreFormatError(
            f"{path} has format version {version!r}; this version of Lamella ({__version__}) reads 1 to "
            f"{FORMAT_VERSION}. Nothing was changed"
        )
    return document


def _to_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
