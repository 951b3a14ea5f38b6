"""Variants: built, run, evaluated, exported, imported, and got back when they were dropped or lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lamella.api.losses import _kernel_table
from lamella.api.models import OnMeasure, load, look, silent
from lamella.api.plans import default_name
from lamella.api.sources import reach
from lamella.core.artifacts import (
    Plan,
    check_same_structure,
)
from lamella.core.errors import InvalidRequest, UnknownVariant
from lamella.evaluating import Evaluation, Exams
from lamella.evaluating import evaluate as evaluate_variants
from lamella.exchange import exporting, importing
from lamella.exchange.exporting import ExportReport
from lamella.exchange.importing import ImportReport
from lamella.llama.imatrix import ImportanceMatrix
from lamella.quantize.build import BuildReport, build_variant
from lamella.quantize.making import OnProgress
from lamella.quantize.rebuild import restore_variant, restorer
from lamella.quantize.repair import RepairReport
from lamella.quantize.repair import repair as repair_store
from lamella.quantize.trimming import keep_quota
from lamella.quantize.trimming import trim as trim_store
from lamella.quantize.tuned import Tuning
from lamella.run.engine import Engine, EngineOptions
from lamella.store.fetching import ShardSource
from lamella.store.keeping import TrimReport
from lamella.store.store import Store


def build(
    model: str | Path,
    store: str | Path,
    plan: Plan,
    name: str | None = None,
    *,
    importance: ImportanceMatrix | None = None,
    tuning: Tuning | None = None,
    replace: bool = False,
    n_threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Make a variant; layers that the store already has at these types are shared.  A quota is kept afterwards.

    Args:
        store: folder; made if it does not exist.
        name: of the variant; None: after the plan (``default_name``).
        importance: what ggml's rounding weighs columns by (``gather_importance``, ``read_importance``).
        tuning: instead of it, what rounding makes up for its errors with (``tune_on``).
        replace: take the place of a variant of that name with other contents.  Who runs that one keeps it.

    Raises:
        ArtifactError: plan or importance matrix are for another model.
        StoreError, StorageFailed, ModelError: see ``lamella.quantize.build.build_variant``.
    """
    source = load(model)
    check_same_structure(plan, source.spec.identity, "the plan")
    opened = Store.create(Path(store), source.spec.identity)
    opened.state.quota_bytes()  # one that cannot be read is said before the work, not after
    report = build_variant(
        source,
        plan,
        opened,
        name or default_name(plan),
        importance=importance,
        tuning=tuning,
        replace=replace,
        n_threads=n_threads,
        on_progress=on_progress,
    )
    return dataclasses.replace(report, trimmed=keep_quota(opened, reach))


def export(
    store: str | Path,
    file: str | Path,
    variant: str | None = None,
    *,
    force: bool = False,
    n_threads: int | None = None,
    on_progress: OnMeasure = silent,
) -> ExportReport:
    """Write a variant as one GGUF file, for llama.cpp and every program that is built on it.

    Args:
        variant: its name; None: the only one of the store.
        force: replace the file if it exists.
        n_threads: that make shards again which are not there; None for all cores that this process may use.

    Raises:
        InvalidRequest: the file exists, or the store has several variants and none was named.
        StoreError, StorageFailed: see ``lamella.exchange.exporting.export_variant``.
    """
    opened = open_store(store, n_threads or 0)
    name = variant or _only_variant(opened)
    return exporting.export_variant(opened, name, Path(file), force=force, on_progress=on_progress)


def import_file(
    file: str | Path,
    store: str | Path,
    name: str | None = None,
    *,
    n_threads: int | None = None,
    on_progress: OnMeasure = silent,
) -> ImportReport:
    """Take a GGUF file of any tool into a store as a variant, its tensors as they are.

    Args:
        store: folder; made if it does not exist.
        name: of the variant; None: the one that the file was exported from, or the file's own.

    Raises:
        ModelError, StoreError, StorageFailed: see ``lamella.exchange.importing.import_file``.
    """
    look(Path(file))
    report = importing.import_file(Path(file), Path(store), name, n_threads=n_threads, on_progress=on_progress)
    return dataclasses.replace(report, trimmed=keep_quota(Store.open(Path(store)), reach))


def open_store(store: str | Path, n_threads: int = 0) -> Store:
    """A store that gets back shards that are not there, dropped or lost, when a variant is loaded.

    Args:
        n_threads: that make them again; 0 for all cores that this process may use.

    Raises:
        StoreError, StorageFailed: see ``Store.open``.
    """
    return Store.open(Path(store), restorer(n_threads, reach))


def restore(
    store: str | Path, variant: str, *, elsewhere: Sequence[ShardSource] = (), n_threads: int | None = None
) -> Mapping[str, str]:
    """Get back a variant's shards that are not there; returns where each came from, by its label.

    Args:
        elsewhere: asked for a shard before it is made again.
        n_threads: that make it; None for all cores that this process may use.

    Raises:
        ShardDamaged: one cannot be got back; says why.
        StoreError, StorageFailed: see ``lamella.quantize.rebuild.restore_variant``.
    """
    opened = Store.open(Path(store))
    return restore_variant(opened, opened.variant(variant), elsewhere=elsewhere, n_threads=n_threads, reach=reach)


def repair(
    store: str | Path,
    *,
    model: str | Path | None = None,
    elsewhere: Sequence[ShardSource] = (),
    n_threads: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> RepairReport:
    """Hash every shard, and get back those that are damaged or missing.

    Args:
        model: where the model that the store was made from stands now; None: where it stood.
        elsewhere: asked for a shard before it is made again.
        n_threads: that make it; None for all cores that this process may use.
        on_progress: called with the bytes just hashed.

    Raises:
        StoreError, StorageFailed: see ``lamella.quantize.repair.repair``.
        ModelError: the model cannot be read.
    """
    opened = Store.open(Path(store))
    source = load(model) if model is not None else None
    return repair_store(
        opened, model=source, elsewhere=elsewhere, n_threads=n_threads, reach=reach, on_progress=on_progress
    )


def trim(store: str | Path) -> TrimReport:
    """Drop shards that can be got back until the store's quota holds, or as many as may go.

    Raises:
        InvalidRequest: the store has no quota.
        StoreError, StorageFailed: see ``lamella.quantize.trimming.trim``.
    """
    return trim_store(Store.open(Path(store)), reach=reach)


def _only_variant(store: Store) -> str:
    names = store.variant_names()
    if len(names) > 1:
        raise InvalidRequest(
            f"{store.path} has {len(names)} variants; say which, as {store.path}@NAME: {', '.join(names)}"
        )
    if not names:
        raise UnknownVariant(f"{store.path} holds no variant yet; build one with: lamella build MODEL {store.path}")
    return names[0]


def open_engine(
    store: str | Path,
    variant: str | None = None,
    options: EngineOptions | None = None,
    *,
    cache_folder: Path | None = None,
) -> Engine:
    """Load a variant of a store; close the engine after use.

    Args:
        variant: None takes the largest.
        cache_folder: where measured speeds of this machine are kept between runs.

    Raises:
        StoreError, EngineFailed: see ``Engine.open``.
    """
    options = options or EngineOptions()
    kernels = _kernel_table(options.context.n_threads, cache_folder)
    return Engine.open(open_store(store, options.context.n_threads), variant, options, kernels)


def evaluate(
    store: str | Path,
    variants: Sequence[str] = (),
    exams: Exams | None = None,
    *,
    reference: str | None = None,
    on_progress: OnMeasure = silent,
) -> Evaluation:
    """How good variants are: perplexity, divergence from a reference, tasks; one load for all of them.

    Args:
        variants: names; none: all of the store.
        exams: the text and the tasks.
        reference: what the others are compared with; None: the largest variant of the store.

    Raises:
        InvalidRequest, StoreError, EngineFailed: see ``lamella.evaluating.evaluation.evaluate``.
    """
    opened = open_store(store, exams.n_threads if exams else 0)
    return evaluate_variants(opened, variants, exams, reference=reference, on_progress=on_progress)
