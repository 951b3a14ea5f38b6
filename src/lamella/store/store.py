"""``Store``: one model's shards and the variants made of them.

    store = Store.open(Path("smollm2.store"))
    for variant in store.variants():
        print(variant.name, variant.n_bytes)
    paths = store.shard_paths(store.variant("int8"))     # what llama_model_load_from_splits takes

Readers never write, except that a variant is in use (``ready_paths``).  Every document is checked when it is read;
nothing in one can name a place outside the store, except where a source stands, which is only read.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
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
from lamella.store.documents import read_document, write_document
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
from lamella.store.keeping import KeptShard
from lamella.store.layout import (
    RECIPE_FORMAT,
    STORE_FORMAT,
    Layout,
    check_sha256,
    check_variant_name,
    link_name,
    link_target,
)
from lamella.store.leases import Lease, leased_ids
from lamella.store.leftovers import Leftovers, find_leftovers
from lamella.store.origins import Origins
from lamella.store.sources import IMPORTANCE_SETTING, Sources
from lamella.store.state import State
from lamella.store.usage import Usage, measure_usage

Restore = Callable[["Store", Variant, Callable[[], bool] | None], object]
"""Gets back the shards of a variant that are not there, or raises ``ShardDamaged``; gives up when the last argument
says so.  Called by ``Store.ready_paths``, whose caller holds a lease on them.  ``quantize.rebuild.restore_variant`` is
one."""

_OWN_NAMES = {"lock", "incoming"}  # what another process that creates the same store may have made already


class Store:
    """An opened store.  Holds no file open; safe to use from several threads and processes.

    Attributes:
        identity: the one model it holds.
        state: quota, pins, what was dropped, when variants were used.
        sources: what shards were made from.
        origins: where shards were pulled from.
    """

    def __init__(self, layout: Layout, identity: ModelIdentity, restore: Restore | None = None) -> None:
        self._layout = layout
        self._restore = restore
        self.identity = identity
        self.state = State(layout)
        self.sources = Sources(layout)
        self.origins = Origins(layout)

    @property
    def path(self) -> Path:
        return self._layout.root

    # opening

    @classmethod
    def open(cls, path: Path, restore: Restore | None = None) -> Self:
        """Open the store at ``path``.

        Args:
            restore: how ``ready_paths`` gets back shards that are not there; None: it does not.

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
        return cls(layout, read_identity(data, layout.document), restore)

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
        return self.quick_damage(shard) is None

    def shard_paths(self, variant: Variant) -> tuple[Path, ...]:
        """The variant's files in split order, as ``llama_model_load_from_splits`` takes them.

        Raises:
            ShardDamaged: one is missing or has another size.
        """
        for shard in variant.shards:
            reason = self.quick_damage(shard)
            if reason:
                text = verify.describe(shard, [variant.name], reason)
                cure = f"; get it back with: lamella store restore {self.path} {variant.name}"
                raise ShardDamaged(text + (cure if reason == verify.DROPPED else ""))
        return tuple(self._layout.shard(shard.id) for shard in variant.shards)

    def quick_damage(self, shard: ShardRef) -> str | None:
        """What can be seen without reading the shard: whether it is there, in its full size."""
        path = self._layout.shard(shard.id)
        with storage_errors(path, "read"):
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                return verify.DROPPED if self.is_dropped(shard.id) else verify.MISSING
        return None if found == shard.n_bytes else f"it has {found} bytes instead of {shard.n_bytes}"

    def is_dropped(self, shard_id: str) -> bool:
        """Whether a shard is not there because it was dropped to keep the quota; it can be got back."""
        return self.state.is_dropped(shard_id)

    def ready_paths(self, variant: Variant, should_stop: Callable[[], bool] | None = None) -> tuple[Path, ...]:
        """``shard_paths`` for whoever is about to use the variant: what was dropped or is missing is got back first.

        Notes that the variant is used.  The caller holds a lease on it.

        Raises:
            ShardDamaged: a shard is not there and cannot be got back; says why.
            StorageFailed: the file system refused.
        """
        self.state.note_use(variant.name)
        if self._restore is not None and any(map(self.quick_damage, variant.shards)):
            self._restore(self, variant, should_stop)
        return self.shard_paths(variant)

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

    def verify(
        self, on_progress: verify.OnProgress | None = None, sample: verify.Sample | None = None
    ) -> verify.VerifyReport:
        """Hash the shards of the store, on all cores; see ``lamella.store.verify``.

        Args:
            sample: which of them, and for how long; None for all.

        Raises:
            UnknownVariant: the sample is of a variant that is not there.
            StorageFailed: a shard cannot be read.
        """
        sample = sample or verify.Sample()
        if sample.variant is not None:
            self.check_variant_exists(sample.variant)
        with self.lease(reading=True) as lease:
            variants, reasons = lease.hold_everything()
            notes = (*self.state.unreadable(), *self.sources.unreadable(), *self.origins.unreadable())
            facts = verify.Facts(variants, reasons, self.state.dropped(), notes)
            return verify.verify(self._layout, facts, sample, on_progress)

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
                needed |= leased_ids(self._layout)
            except StoreFormatError:
                return find_leftovers(self._layout, None)
            return find_leftovers(self._layout, None if reasons else needed)

    # building

    def recall(self, recipe_id: str) -> ShardRef | None:
        """The shard that a recipe once made, if it is still there in its full size.  ``Lease.recall`` also keeps it."""
        shard = self.remembered(recipe_id)
        return None if shard is None or self.quick_damage(shard) else shard

    def remembered(self, recipe_id: str) -> ShardRef | None:
        """The shard that a recipe once made, be it there or not; None if there is no such recipe, or it cannot be read
        (a recipe is a cache)."""
        path = self._layout.recipe(recipe_id)
        with contextlib.suppress(OSError, StoreFormatError, msgspec.ValidationError):
            document = read_document(path.read_bytes(), RECIPE_FORMAT, path)
            shard = msgspec.convert(document.get("shard"), ShardRef)
            check_sha256(shard.id, f"{path}: shard id")
            return shard
        return None

    def remember(self, recipe_id: str, recipe: Mapping[str, Any], shard: ShardRef) -> None:
        """Note which shard a recipe made, so that it need not be made again."""
        document = write_document(RECIPE_FORMAT, {"recipe": recipe, "shard": asdict(shard)})
        target = self._layout.recipe(recipe_id)
        with locks.shared_lock(self._layout):  # else a running gc could take it for a recipe of no shard
            write_atomically(self._layout.incoming, target, document, durable=False)  # a cache

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
            self.state.forget_variant(name)

    def collect_garbage(self) -> gc.GarbageReport:
        """Remove shards and recipes that neither a variant nor a living lease needs, and what the dead left.

        May be called while others build, load and run.

        Raises:
            StoreBusy: a loader that cannot write a lease took longer than ``locks.LONGEST_WAIT_S``.
            StoreFormatError: a variant or a lease cannot be read, so what it needs is not known; names the cure.
        """
        with locks.exclusive_lock(self._layout):
            self._refuse_unreadable()
            variants, leased = self.variants(), self.leased_ids()
            needed = {shard.id for variant in variants for shard in variant.shards} | leased
            made = {recipe_id: self.remembered(recipe_id) for recipe_id, _ in self._layout.recipe_files()}
            report = gc.collect(self._layout, needed, {i: shard.id if shard else None for i, shard in made.items()})
            self.state.forget_all_but(self._layout.variant_names(), needed)
            self.origins.forget_all_but(needed)
            matrices = {str(variant.plan.settings.get(IMPORTANCE_SETTING)) for variant in variants} | leased
            return replace(report, freed_bytes=report.freed_bytes + self.sources.forget_importance(matrices))

    def drop(self, shards: Sequence[KeptShard]) -> tuple[ShardRef, ...]:
        """Remove shards that variants need and that can be got back; returns those that went.

        May be called while others build, load and run: what somebody has leased, pinned, or made or removed a variant
        of since it was looked at stays.

        Raises:
            StoreBusy: a loader that cannot write a lease took longer than ``locks.LONGEST_WAIT_S``.
            StoreFormatError: a variant, a pin or a lease cannot be read; names the cure.
            StorageFailed: the file system refused.
        """
        if not shards:
            return ()
        with locks.exclusive_lock(self._layout):
            self._refuse_unreadable()
            variants, leased, pinned = self.variants(), self.leased_ids(), self.state.pinned()
            going = [
                shard.ref
                for shard in shards
                if shard.ref.id not in leased
                and pinned.isdisjoint(shard.variants)
                and verify.users_of(shard.ref.id, variants) == shard.variants
            ]
            for ref in going:
                self.state.note_dropped(ref)
                with storage_errors(self._layout.shard(ref.id), "remove"):
                    self._layout.shard(ref.id).unlink(missing_ok=True)
        return tuple(going)

    def leased_ids(self) -> set[str]:
        """What somebody relies on at this moment: ids of shards, hashes of importance matrices.

        Raises:
            StoreFormatError: a lease of another version.
            StorageFailed: a lease cannot be read.
        """
        with storage_errors(self._layout.leases, "read"):
            return leased_ids(self._layout)

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
    document = read_document(data, STORE_FORMAT, source)
    try:
        return msgspec.convert(document.get("model"), ModelIdentity)
    except msgspec.ValidationError as error:
        raise StoreFormatError(f"{source}: {error}") from None


def store_document(identity: ModelIdentity) -> bytes:
    """``store.json`` of a store for that model."""
    return write_document(STORE_FORMAT, {"model": asdict(identity)})


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
