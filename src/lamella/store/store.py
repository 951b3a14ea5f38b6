"""``Store``: one model's shards and the variants made of them.

    store = Store.open(Path("smollm2.store"))
    for variant in store.variants():
        print(variant.name, variant.n_bytes)
    paths = store.shard_paths(store.variant("int8"))     # what llama_model_load_from_splits takes

Readers never write, except that a variant is in use (``ready_paths``).  Every document is checked when it is read;
nothing in one can name a place outside the store, except where a source stands, which is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from lamella.core.artifacts import Plan, ShardRef, Variant
from lamella.core.errors import ShardDamaged, StoreError, StoreFormatError
from lamella.core.input_files import read_file
from lamella.core.model import ModelIdentity
from lamella.store import gc, locks, verify
from lamella.store.claims import Claims
from lamella.store.files import storage_errors, stored_bytes
from lamella.store.founding import found_store, read_identity
from lamella.store.keeping import KeptShard
from lamella.store.layout import Layout, check_variant_name, link_name
from lamella.store.leases import Lease, leased_ids
from lamella.store.leftovers import Leftovers, find_leftovers
from lamella.store.origins import Origins
from lamella.store.recipes import Recipes
from lamella.store.sources import IMPORTANCE_SETTING, Sources
from lamella.store.state import State
from lamella.store.usage import Usage, measure_usage
from lamella.store.variants import Variants, Version

Restore = Callable[["Store", Variant, Callable[[], bool] | None], object]
"""Gets back the shards of a variant that are not there, or raises ``ShardDamaged``; gives up when the last argument
says so.  Called by ``Store.ready_paths``, whose caller holds a lease on them.  ``quantize.rebuild.restore_variant`` is
one."""


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
        self._variants = Variants(layout)
        self._recipes = Recipes(layout)
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
            StoreFormatError: no store, or one of a newer format, which is left untouched; or one with a link in it that
                leads out of it.
            StorageFailed: it cannot be read.
        """
        layout = Layout(path)
        with storage_errors(layout.document, "read"):
            if (link := layout.link_outside()) is not None:
                raise StoreFormatError(
                    f"{link} leads out of the store, to {link.resolve()}; a store is one folder: remove the link, or "
                    "mount the other folder there. Nothing was changed"
                )
            try:
                data = read_file(layout.document)
            except (FileNotFoundError, NotADirectoryError):
                why = "it has no store.json" if path.exists() else "it does not exist"
                raise StoreFormatError(f"{path} is no store: {why}") from None
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
            found_store(layout, identity)
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
        return self._variants.names()

    def variants(self) -> tuple[Variant, ...]:
        """All variants, by name; use ``readable_variants`` where a damaged one must not be in the way.

        Raises:
            StoreFormatError: a variant's document is damaged or of a newer format; names it and the cure.
        """
        return self._variants.all()

    def readable_variants(self) -> tuple[tuple[Variant, ...], dict[str, str]]:
        """The variants that can be read, and of each other one (name -> reason) why it cannot."""
        return self._variants.readable()

    def check_variant_exists(self, name: str) -> None:
        """Refuse a name that no variant has; whether that variant can be read is another question.

        Raises:
            UnknownVariant: there is none; lists those there are.
        """
        self._variants.check_exists(name)

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            UnknownVariant: there is none; lists those there are.
            StoreFormatError: its document is damaged or of a newer format; names it and the cure.
        """
        return self._variants.read(name)

    def version(self, name: str) -> Version:
        """Of the variant of that name: another one once it was replaced.

        Raises:
            UnknownVariant: there is none; lists those there are.
        """
        return self._variants.version(name)

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
            links = self._variants.broken_links([v for v in variants if sample.variant in (None, v.name)])
            facts = verify.Facts(variants, reasons, self.state.dropped(), notes, links)
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
        return self._recipes.find(recipe_id)

    def remember(self, recipe_id: str, recipe: Mapping[str, Any], shard: ShardRef) -> None:
        """Note which shard a recipe made, so that it need not be made again."""
        self._recipes.note(recipe_id, recipe, shard)

    def add_variant(self, name: str, plan: Plan, shards: Sequence[ShardRef], *, replace: bool = False) -> Variant:
        """Make a variant of shards that are in the store.  The caller holds a lease on them.

        A variant of that name with the same shards is returned as it is.

        Args:
            replace: put it in the place of a variant with other contents too, in one moment.  Whoever holds that one
                keeps it; its shards go with the next ``collect_garbage``.

        Raises:
            VariantExists: the name is taken by other contents.
            ShardDamaged: a shard is not there, or not in its full size.
            StorageFailed: the file system refused.
        """
        variant = Variant(check_variant_name(name), plan, tuple(shards))
        return self._variants.add(variant, self.shard_paths, replace=replace)

    def mend_links(self, variant: Variant) -> tuple[str, ...]:
        """Make the links for stock llama.cpp what the variant's document says; returns those that were otherwise.

        Raises:
            StorageFailed: the file system refused.
        """
        return self._variants.mend_links(variant)

    # removing

    def remove(self, name: str) -> None:
        """Remove a variant, readable or not.  Its shards stay until ``collect_garbage``.

        Raises:
            UnknownVariant: there is none of that name.
            StorageFailed: the file system refused.
        """
        with locks.shared_lock(self._layout):
            self._variants.remove(name)
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
            report = gc.collect(self._layout, needed, self._recipes.all())
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

    def _refuse_unreadable(self) -> None:
        _, reasons = self.readable_variants()
        if reasons:
            raise StoreFormatError(
                f"nothing was deleted, because it is not known what {', '.join(reasons)} needs: "
                + "; ".join(reasons.values())
            )
