"""A GGUF file of any tool, taken into a store: every tensor as it is, cut into the store's shards.

    report = import_file(Path("model.Q4_K_M.gguf"), Path("model.store"))

A shard that the store has already, from whatever source, is shared.  Everything that could mix two models is refused
before anything is written: ``check_same_model`` says how models are told apart when their types differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.core.artifacts import Plan, ShardRef, Variant
from lamella.core.errors import ModelError, ShardDamaged, StoreError, UnknownVariant
from lamella.core.model import TensorSpec
from lamella.exchange.metadata import Description, read_description, settings_of_file
from lamella.llama.gguf import (
    SAMPLE_BYTES,
    Header,
    ModelFile,
    Scalar,
    TensorData,
    is_structural,
    read_model,
    read_tensors,
)
from lamella.planning.as_stored import as_stored
from lamella.quantize.build import copy_variant
from lamella.quantize.making import BuildProgress
from lamella.quantize.rebuild import restorer
from lamella.store.files import pieces, storage_errors
from lamella.store.keeping import TrimReport
from lamella.store.layout import check_variant_name
from lamella.store.leases import Lease
from lamella.store.store import Store
from lamella.store.variants import variant_exists

IMPORTED = "imported"
"""Policy of a plan that was read off a file."""

_PART = re.compile(r"-\d{5}-of-\d{5}$")

OnProgress = Callable[[int, int, str], None]
"""(done, of how many, what): bytes while the file is hashed, then weights."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did.

    Attributes:
        n_shared: shards that variants of the store had already.
        new_bytes: of those that none had.
        seconds: from call to variant.
        from_export: whether Lamella exported the file: its plan is back.
        metadata_left_out: keys of descriptive metadata in which the file differs from the store, whose own is kept.
        trimmed: what went to keep the store's quota afterwards; None if it has none.
    """

    variant: Variant
    n_shared: int
    new_bytes: int
    seconds: float
    from_export: bool
    metadata_left_out: tuple[str, ...]
    trimmed: TrimReport | None = None


@dataclass(frozen=True, slots=True)
class _Resident:
    """A variant that the store has: what its model looks like.

    Attributes:
        meta: its metadata shard.
        metadata: of that shard, arrays as hashes.
    """

    meta: ShardRef
    metadata: Mapping[str, Scalar]
    tensors: Mapping[str, TensorData]

    @classmethod
    def of(cls, store: Store, variant: Variant) -> _Resident:
        paths = store.ready_paths(variant)
        tensors = {name: t for path in paths for name, t in read_tensors(path).items()}
        return cls(variant.shards[0], _metadata(paths[0]), tensors)


def import_file(
    path: Path,
    store_path: Path,
    name: str | None = None,
    *,
    n_threads: int | None = None,
    on_progress: OnProgress = lambda _done, _total, _what: None,
) -> ImportReport:
    """Make a file a variant of a store, which is made if it does not exist.

    The variant's metadata and tokenizer are the store's, where it has variants: equal in all that computes, and one
    model has one name and one chat template, whichever variant of it runs.

    Args:
        path: the file, or any part of a split one.
        name: of the variant; None: the one it was exported from, or the file's own.

    Raises:
        ModelError: the file cannot be read, or a tensor holds NaN or infinity.
        StoreError: the store holds another model, or a variant of that name with other contents.
        InvalidRequest: the name cannot name a variant.
        ArtifactError: the file carries a plan of a newer format.
        StorageFailed: the file system refused; no partial file is left.
    """
    started = time.perf_counter()
    source = read_model(path)
    exported = read_description(source)
    name = check_variant_name(name or (exported.variant if exported else "") or _PART.sub("", path.stem))
    store = _open(store_path, source, exported, n_threads)
    with store.lease() as lease:
        before = {shard.id for variant in store.readable_variants()[0] for shard in variant.shards}
        resident = _resident(store, lease)
        if resident is None:
            _refuse_other_structure(store, source)
        else:
            check_same_model(store, source, resident)
        _refuse_taken_name(store, name, source)
        plan = exported.plan if exported else _plan(source, on_progress)
        known = {0: resident.meta} if resident else {}
        variant = copy_variant(
            source, plan, store, lease, name, known=known, n_threads=n_threads, on_progress=_weights_done(on_progress)
        ).variant
    new = [shard for shard in variant.shards if shard.id not in before]
    return ImportReport(
        variant,
        len(variant.shards) - len(new),
        sum(shard.n_bytes for shard in new),
        time.perf_counter() - started,
        exported is not None,
        _differing(_metadata(source.paths[0]), resident.metadata) if resident else (),
    )


def check_same_model(store: Store, source: ModelFile, resident: _Resident) -> None:
    """Refuse a file of another model, by what quantizing does not change.

    Hyper-parameters, tokenizer, tensor names and shapes must be equal.  Of the weights, norms and biases stay as they
    are in every quantized file of a model: where most of them differ, the file was made from other weights (another
    training, or channels scaled anew), and a live switch would go on with a KV cache that means something else.

    Raises:
        StoreError: says what differs.
    """
    identity = source.spec.identity
    if identity.structure != store.identity.structure:
        raise _other_model(store, source, _structural_difference(store, source, resident))
    vectors = [t for t in source.tensors.values() if _is_comparable(t.spec, resident.tensors[t.spec.name].spec)]
    other = [t.spec.name for t in vectors if _sample(t) != _sample(resident.tensors[t.spec.name])]
    if 2 * len(other) > len(vectors):
        reason = f"{len(other)} of {len(vectors)} norms and biases, which quantizing keeps, have other values"
        raise _other_model(store, source, f"{reason}, for example {other[0]}")


def _structural_difference(store: Store, source: ModelFile, resident: _Resident) -> str:
    architecture = store.identity.architecture
    if source.spec.identity.architecture != architecture:
        return "another architecture"
    keys = _differing(_metadata(source.paths[0]), resident.metadata)
    mine, theirs = ({n: t.spec.shape for n, t in tensors.items()} for tensors in (source.tensors, resident.tensors))
    return f"it differs in {_some([*(k for k in keys if is_structural(k, architecture)), *_differing(mine, theirs)])}"


def _is_comparable(mine: TensorSpec, other: TensorSpec) -> bool:
    return not mine.is_matrix and mine.type_name == other.type_name


def _sample(tensor: TensorData) -> bytes:
    with storage_errors(tensor.path, "read"), tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(min(SAMPLE_BYTES, tensor.n_bytes))


def _open(path: Path, source: ModelFile, exported: Description | None, n_threads: int | None) -> Store:
    """The store, or a new one: for the model that an exported file was made from, so that it can be built upon."""
    if (path / "store.json").exists():
        return Store.open(path, restorer(n_threads))
    return Store.create(path, exported.model if exported else source.spec.identity)


def _resident(store: Store, lease: Lease) -> _Resident | None:
    """One variant to compare with: they are all of one model, so the first whose shards can be read."""
    for variant in store.readable_variants()[0]:
        with contextlib.suppress(ShardDamaged, ModelError, UnknownVariant):
            return _Resident.of(store, lease.hold(variant.name))
    return None


def _refuse_other_structure(store: Store, source: ModelFile) -> None:
    if source.spec.identity.structure != store.identity.structure:
        raise _other_model(store, source, "another structure (hyper-parameters, tokenizer or tensors)")


def _refuse_taken_name(store: Store, name: str, source: ModelFile) -> None:
    """Say at once what the types tell; ``add_variant`` compares the rest."""
    try:
        found = store.variant(name)
    except UnknownVariant:
        return
    if any(found.plan.tensors.get(t.name, t.type_name) != t.type_name for t in source.spec.tensors):
        raise variant_exists(store.path, found)


def _other_model(store: Store, source: ModelFile, reason: str) -> StoreError:
    mine, theirs = store.identity, source.spec.identity
    return StoreError(
        f"{store.path} holds {mine.name} ({mine.architecture}); {source.paths[0]} is another model, {theirs.name} "
        f"({theirs.architecture}): {reason}. One store, one model: import it into a store of its own"
    )


def _plan(source: ModelFile, on_progress: OnProgress) -> Plan:
    settings: dict[str, int | float | str] = {
        "file": source.paths[0].name,
        "sha256": _sha256(source.paths, on_progress),
        **settings_of_file(source),
    }
    return as_stored(source.spec, IMPORTED, settings)


def _sha256(paths: Sequence[Path], on_progress: OnProgress) -> str:
    """Of the file; of a split one, of its parts one after another."""
    digest, n_done, n_bytes = hashlib.sha256(), 0, sum(path.stat().st_size for path in paths)
    for path in paths:
        for piece in pieces(path):
            digest.update(piece)
            n_done += len(piece)
            on_progress(n_done, n_bytes, f"reading {path.name}")
    return digest.hexdigest()


def _weights_done(on_progress: OnProgress) -> Callable[[BuildProgress], None]:
    return lambda at: on_progress(at.weights_done, at.weights_total, f"{at.label}, {at.n_done}/{at.n_shards} shards")


def _metadata(path: Path) -> dict[str, Scalar]:
    with Header.open(path) as header:
        return header.model_values()


def _differing(mine: Mapping[str, object], other: Mapping[str, object]) -> tuple[str, ...]:
    """Keys that only one has, or that have another value."""
    return tuple(
        sorted(k for k in mine.keys() | other.keys() if k not in mine or k not in other or mine[k] != other[k])
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4]) or "its structure"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
