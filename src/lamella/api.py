"""The story in Python: look at a model, measure it, plan, build a store, run it.

    import lamella

    measurement = lamella.measure("model.gguf", metric="jaccard")
    plan = lamella.plan("model.gguf", policy="lsaq", memory="6GiB", measurement=measurement)
    lamella.build("model.gguf", "store", plan, name="six-gib")
    with lamella.Engine.open(lamella.Store.open(Path("store")), "six-gib") as engine:
        print(engine.generate("Once upon a time").text())

These functions join the stages; each stage can also be used alone (docs/architecture.md).  The command line calls
nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamella import measuring
from lamella.core.artifacts import (
    Measurement,
    Plan,
    TensorLoss,
    check_same_structure,
    check_same_weights,
    from_json,
    to_json,
)
from lamella.core.errors import ArtifactError, InvalidRequest, UnknownVariant
from lamella.core.model import ModelSpec
from lamella.core.precision import GGML_TYPES, Scheme
from lamella.core.units import format_bytes, parse_bytes
from lamella.evaluating import Evaluation, Exams
from lamella.evaluating import evaluate as evaluate_variants
from lamella.exchange import exporting, importing
from lamella.exchange.exporting import ExportReport
from lamella.exchange.importing import ImportReport
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.handles import ContextOptions, usable_cores
from lamella.llama.imatrix import ImportanceMatrix, read_imatrix, serialise_imatrix
from lamella.llama.kernels import KernelTimes
from lamella.llama.stock_mix import MIXES, canonical_mix, stock_types
from lamella.measuring import ImportanceSettings, MeasureSettings, measure_model, parse_calibration
from lamella.measuring.journal import journal_file
from lamella.measuring.sensitivity import no_journal
from lamella.planning import frontier as planning_frontier
from lamella.planning.constraints import Constraints, Prices, TypePrice
from lamella.planning.frontier import DEFAULT_POINTS, Frontier
from lamella.planning.ladder import DEFAULT_RATIO, JointBudget, Ladder, evenly_spaced, plan_ladder
from lamella.planning.policies import LADDER, METRICS, check_policy, make_plan
from lamella.planning.request import PlanRequest, StockTypes, check_limits
from lamella.planning.specs import builtin_spec
from lamella.quantize.build import BuildReport, OnProgress, build_variant
from lamella.quantize.rebuild import restore_variant, restorer
from lamella.quantize.repair import RepairReport
from lamella.quantize.repair import repair as repair_store
from lamella.quantize.trimming import keep_quota
from lamella.quantize.trimming import trim as trim_store
from lamella.quantize.tuned import Tuning
from lamella.resources import devices as resource_devices
from lamella.resources.catalogue import SPEC_PREFIX, model_path
from lamella.resources.devices import DeviceMemory
from lamella.resources.need import default_reserve, file_overhead, spec_overhead
from lamella.resources.waiting import Waiting, wait_until_fits
from lamella.run.engine import Engine, EngineOptions
from lamella.run.kernel_table import KernelTable
from lamella.run.prices import prices_of
from lamella.store.fetching import FolderSource, ShardSource
from lamella.store.files import new_file, storage_errors
from lamella.store.keeping import TrimReport
from lamella.store.store import Store
from lamella.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lamella.remote.hub import HubReport
    from lamella.remote.pull import OnTransfer, PullReport
    from lamella.remote.push import PushReport
    from lamella.remote.serving import StoreServer

DEFAULT_CONTEXT = 4096
DEFAULT_STEPS = 6
DEFAULT_FIRST_BITS = planning_frontier.WIDEST_BITS
HUB_PREFIX = "hf:"
_LOSS_METRIC = "metric sensitivity, for each tensor"

OnMeasure = Callable[[int, int, str], None]


def _silent(_done: int, _total: int, _what: str) -> None:
    """Default progress: none."""


def load(model: str | Path) -> ModelFile:
    """Open a model: a path, or ``smollm2``.

    Raises:
        ModelError: there is none, or it cannot be used.
    """
    return read_model(model_path(str(model)))


def load_spec(model: str | Path) -> ModelSpec:
    """The shape of a model file, or of a built-in specification (``spec:llama-2-7b``).

    Raises:
        ModelError, InvalidRequest: there is none.
    """
    name = str(model)
    return builtin_spec(name.removeprefix(SPEC_PREFIX)) if name.startswith(SPEC_PREFIX) else load(model).spec


def devices(wanted: str | None = None) -> tuple[tuple[DeviceMemory, ...], DeviceMemory]:
    """Every device with its memory, and the one to use (LSAQ's resource detection).

    Raises:
        InvalidRequest: no device of the wanted name.
    """
    found = resource_devices.detect()
    return found, resource_devices.choose(found, wanted)


def measure(
    model: str | Path,
    metric: str = "jaccard",
    *,
    calibration: Sequence[str] = (),
    settings: MeasureSettings | None = None,
    importance: ImportanceMatrix | None = None,
    journal: Path | None = None,
    on_progress: OnMeasure = _silent,
) -> Measurement:
    """What each layer, or each tensor, contributes.

    Args:
        metric: ``jaccard``, ``cosine``, ``outlier``, ``weight-difference`` or ``sensitivity``.
        calibration: text files, each ``FILE`` or ``TASK=FILE``; none: the model writes its own text.
        importance: of ``sensitivity``: the matrix that the build will round with.
        journal: of ``sensitivity``: file for finished probes, so that an interrupted run goes on; removed at the end.

    Raises:
        InvalidRequest: unknown metric, text missing or too short.
        ModelError: the model cannot be used.
    """
    files = [parse_calibration(text) for text in calibration]
    with contextlib.ExitStack() as stack:
        open_journal = stack.enter_context(journal_file(journal)) if journal else no_journal
        found = measure_model(
            load(model), [metric], files, settings, on_progress, importance=importance, open_journal=open_journal
        )
    return found[metric]


def measure_once(
    model: str | Path,
    metric: str,
    cache_folder: Path,
    *,
    settings: MeasureSettings | None = None,
    on_progress: OnMeasure = _silent,
) -> Measurement:
    """``measure`` on text that the model writes, remembered in the cache: the same weights are measured once.

    Interrupted measurements of sensitivity go on where they were.

    Raises:
        InvalidRequest, ModelError: as ``measure``.
        StorageFailed: the cache folder cannot be written.
    """
    settings = settings or MeasureSettings()
    source = load(model)
    asked = f"{source.spec.identity.weights} {metric} {replace(settings, n_threads=0)} {__version__}"
    path = cache_folder / "measurements" / f"{metric}-{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(ArtifactError):
        return read_measurement(path)
    with storage_errors(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
    found = measure(model, metric, settings=settings, journal=path.with_suffix(".probes"), on_progress=on_progress)
    write_artifact(found, path)
    return found


def default_policy(model: str | Path, scheme: Scheme = "block", measurement: Measurement | None = None) -> str:
    """``knapsack``, where tensors can be looked at one by one; else ``lsaq``: for specifications, for scheme
    ``channel``, and for a measurement of layers.
    """
    if str(model).startswith(SPEC_PREFIX) or scheme != "block":
        return "lsaq"
    return "knapsack" if measurement is None or measurement.tensors else "lsaq"


def gather_importance(
    model: str | Path,
    calibration: Sequence[str],
    *,
    settings: ImportanceSettings | None = None,
    on_progress: OnMeasure = _silent,
) -> ImportanceMatrix:
    """Mean squared activation of each weight column: what rounding weighs its errors by.

    Args:
        calibration: text files, each ``FILE`` or ``TASK=FILE``.

    Raises:
        InvalidRequest: text missing or too short.
        ModelError: the model cannot be used.
    """
    files = [parse_calibration(text) for text in calibration]
    return measuring.gather_importance(load(model), files, settings, on_progress)


def tune_on(
    model: str | Path,
    calibration: Sequence[str],
    *,
    settings: ImportanceSettings | None = None,
    on_progress: OnMeasure = _silent,
) -> Tuning:
    """Tune rounding on text: each block of a row makes up for the errors of those before it (``quantize.tuned``).

    The text is read while ``build`` runs, for as many layers at a time as 1 GiB of covariances allows, and only for
    layers that the store lacks.  What was gathered last is kept, for the next variant.

    Args:
        calibration: text files, each ``FILE`` or ``TASK=FILE``.
        settings: how they are read; None for windows of 512 tokens, the first 32 of each.

    Raises:
        InvalidRequest: text missing; ``build`` says if it is too short.
        ModelError: the model cannot be used.
    """
    source = load(model)
    text = measuring.covariance_text([parse_calibration(file) for file in calibration], settings)

    @functools.lru_cache(maxsize=1)
    def gather(layers: tuple[int, ...]) -> Mapping[str, NDArray[np.float32]]:
        return measuring.gather_covariances(source, text, layers, on_progress)

    return Tuning(text.identity, lambda layers: gather(tuple(layers)))


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory a plan may use.

    Attributes:
        limit_bytes: what the user allows; None for what the device has free.
        device: name of the device to look at; None for the one with most free memory.
    """

    limit_bytes: int | None = None
    device: str | None = None

    def now(self) -> int:
        """Bytes that may be used at this moment."""
        free = devices(self.device)[1].free_bytes
        return free if self.limit_bytes is None else min(free, self.limit_bytes)


@dataclass(frozen=True, slots=True)
class _Goal:
    """What only ``knapsack`` can be asked for; see ``plan``."""

    file_size: str | int | None
    kl: float | None
    ms_per_token: float | None
    prompt_tokens_per_second: float | None
    constraints: Constraints | None
    prices: Prices | None
    exact: bool

    @property
    def has_speed(self) -> bool:
        return self.ms_per_token is not None or self.prompt_tokens_per_second is not None

    @property
    def has_limit(self) -> bool:
        return self.has_speed or self.file_size is not None or self.kl is not None

    def check(self, policy: str) -> None:
        """Refuse, before anything is measured, what another policy cannot do.

        Raises:
            InvalidRequest: the goal of another policy.
        """
        if policy != "knapsack" and (self.has_limit or self.constraints is not None or self.exact):
            raise InvalidRequest(
                f"file size, KL ceiling, speed, constraints and proof belong to policy knapsack, not to {policy}"
            )

    def added_to(
        self, request: PlanRequest, model: str | Path, policy: str, measurement: Measurement | None
    ) -> PlanRequest:
        """The request with this goal.

        Raises:
            InvalidRequest: no measurement of what tensors lose.
        """
        if policy != "knapsack":
            return request
        losses = _losses(measurement)
        return replace(
            request,
            losses=losses,
            weights_bytes=_weights_bytes(model, request.spec, _as_bytes(self.file_size)),
            loss_ceiling=self.kl,
            ms_per_token=self.ms_per_token,
            prompt_tokens_per_second=self.prompt_tokens_per_second,
            constraints=self.constraints or Constraints(),
            prices=self.prices or (measured_prices(losses) if self.has_speed else {}),
            exact=self.exact,
        )


def plan(
    model: str | Path,
    policy: str | None = None,
    *,
    memory: str | int | None = None,
    alpha: float | None = None,
    precision: str | None = None,
    outside: str | None = None,
    average_bits: float | None = None,
    bits_per_weight: float | None = None,
    file_size: str | int | None = None,
    kl: float | None = None,
    ms_per_token: float | None = None,
    prompt_tokens_per_second: float | None = None,
    constraints: Constraints | None = None,
    prices: Prices | None = None,
    exact: bool = False,
    seed: int | None = None,
    mix: str | None = None,
    importance: ImportanceMatrix | None = None,
    scheme: Scheme = "block",
    context: int | None = None,
    parallel: int = 1,
    kv_type: str = "F16",
    measurement: Measurement | None = None,
    device: str | None = None,
    wait: bool = False,
    timeout_seconds: float | None = None,
    on_wait: Callable[[Waiting], None] = lambda _: None,
    on_progress: OnMeasure = _silent,
) -> Plan:
    """Decide how many bits each layer gets.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        policy: one of ``planning.policies.POLICIES``; None: ``default_policy``.
        memory: bytes or a size such as ``6GiB``; None, and no other limit: what the device has free, for ``knapsack``,
            ``lsaq``, ``lwq-*``, ``random``, and for ``uniform`` without a precision; the others then plan without a
            limit.
        alpha: aggressiveness of ``alpha``, in (0, 1]; smaller is more aggressive.
        precision: of ``uniform``: a menu name or a ggml type.
        outside: precision of embedding and head, or ``keep``; None: the policy's default.
        average_bits: in place of memory: ceiling of the layers' mean nominal bits.
        bits_per_weight: in place of memory (``knapsack``: or with it): ceiling of the stored bits over all weights.
        file_size: ``knapsack``: bytes or a size of one GGUF file of the plan: weights, and the source's metadata.
        kl: ``knapsack``: the smallest plan that is predicted to lose at most so many nats a token.
        ms_per_token, prompt_tokens_per_second: ``knapsack``: speed of matrix products, by ``prices``.
        constraints: ``knapsack``: types to avoid, floors, fused groups.
        prices: speed of each type; None: measured now (``measured_prices``) if a speed was asked for.
        exact: ``knapsack``: prove the plan by integer program, in seconds instead of milliseconds.
        seed: of ``random``: of the order of the layers; None: 0.
        mix: of ``stock``: a mix of llama-quantize, such as ``Q4_K_M``.
        importance: of ``stock``: the matrix that the plan will be built with; some mixes choose other types then.
        context: tokens for each sequence that memory is kept for; None: up to 4096 (for a specification: LSAQ's
            own arithmetic, whose reserve covers it).
        measurement: what was measured; None: the policy's metric (``planning.policies.METRICS``), on text
            that the model writes, or for a specification the prior of ``planning.importance``.
        wait: wait until memory is free instead of failing (LSAQ's pause).

    Raises:
        DoesNotFit: nothing fits; says by how much.
        InvalidRequest: arguments without a meaning.
        ArtifactError: the measurement or the importance matrix is of another model.
    """
    budget = Budget(_as_bytes(memory), device)
    policy = policy or default_policy(model, scheme, measurement)
    check_plan_arguments(
        policy, measurement, memory=memory, average_bits=average_bits, bits_per_weight=bits_per_weight,
        seed=seed, mix=mix, importance=importance,
    )  # fmt: skip
    base = PlanRequest(
        load_spec(model), scheme=scheme, alpha=alpha, precision=precision, outside=outside,
        average_bits=average_bits, bits_per_weight=bits_per_weight, seed=seed,
        stock=_stock(model, mix, importance) if mix is not None else None,
    )  # fmt: skip
    goal = _Goal(file_size, kl, ms_per_token, prompt_tokens_per_second, constraints, prices, exact)
    goal.check(policy)
    measurement = measurement or _measured_now(model, policy, on_progress)
    base = goal.added_to(_with_measurement(base, policy, measurement), model, policy, measurement)
    needs = _needs(model, base.spec, policy, context, parallel, kv_type)

    def try_plan(budget_bytes: int | None) -> Plan:
        return make_plan(policy, replace(needs(base, budget_bytes), budget_bytes=budget_bytes))

    wants_limit = policy in LADDER or policy == "knapsack" or (policy == "uniform" and precision is None)
    needs_limit = wants_limit and not base.has_limit and not goal.has_limit
    limit = budget.limit_bytes
    if limit is None and not needs_limit:
        return try_plan(None)
    if not wait:
        return try_plan(budget.now() if limit is None else limit)
    if limit is not None:
        try_plan(limit)  # what does not fit the limit itself is not worth waiting for
    return wait_until_fits(try_plan, budget.now, timeout_seconds=timeout_seconds, on_wait=on_wait)


def check_plan_arguments(
    policy: str,
    measurement: Measurement | None = None,
    *,
    memory: str | int | None = None,
    average_bits: float | None = None,
    bits_per_weight: float | None = None,
    seed: int | None = None,
    mix: str | None = None,
    importance: ImportanceMatrix | None = None,
) -> None:
    """Refuse at once, before anything is measured, arguments of ``plan`` that do not go together.

    Raises:
        InvalidRequest: says which, and what would do.
    """
    check_policy(policy, measurement.metric if measurement else None)
    check_limits(_as_bytes(memory), average_bits, bits_per_weight, together=policy == "knapsack")
    if mix is None and policy == "stock":
        raise InvalidRequest(f"policy stock needs a mix of llama-quantize: {', '.join(MIXES)}")
    if mix is not None and policy != "stock":
        raise InvalidRequest(f"a mix is for policy stock, not for {policy}")
    if importance is not None and policy != "stock":
        raise InvalidRequest(f"policy {policy} asks no importance matrix which types to choose; only stock does")
    if seed is not None and policy != "random":
        raise InvalidRequest(f"a seed is for policy random, not for {policy}")
    if measurement is not None and policy in ("random", "stock"):
        raise InvalidRequest(f"policy {policy} looks at no measurement")


def build(
    model: str | Path,
    store: str | Path,
    plan: Plan,
    name: str | None = None,
    *,
    importance: ImportanceMatrix | None = None,
    tuning: Tuning | None = None,
    n_threads: int | None = None,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Make a variant; layers that the store already has at these types are shared.  A quota is kept afterwards.

    Args:
        store: folder; made if it does not exist.
        name: of the variant; None: after the plan (``default_name``).
        importance: what ggml's rounding weighs columns by (``gather_importance``, ``read_importance``).
        tuning: instead of it, what rounding makes up for its errors with (``tune_on``).

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
        n_threads=n_threads,
        on_progress=on_progress,
    )
    return replace(report, trimmed=keep_quota(opened))


def export(
    store: str | Path,
    file: str | Path,
    variant: str | None = None,
    *,
    force: bool = False,
    n_threads: int | None = None,
    on_progress: OnMeasure = _silent,
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
    on_progress: OnMeasure = _silent,
) -> ImportReport:
    """Take a GGUF file of any tool into a store as a variant, its tensors as they are.

    Args:
        store: folder; made if it does not exist.
        name: of the variant; None: the one that the file was exported from, or the file's own.

    Raises:
        ModelError, StoreError, StorageFailed: see ``lamella.exchange.importing.import_file``.
    """
    report = importing.import_file(Path(file), Path(store), name, n_threads=n_threads, on_progress=on_progress)
    return replace(report, trimmed=keep_quota(Store.open(Path(store))))


def open_store(store: str | Path, n_threads: int = 0) -> Store:
    """A store that gets back shards that are not there, dropped or lost, when a variant is loaded.

    Args:
        n_threads: that make them again; 0 for all cores that this process may use.

    Raises:
        StoreError, StorageFailed: see ``Store.open``.
    """
    return Store.open(Path(store), restorer(n_threads))


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
    return restore_variant(opened, opened.variant(variant), elsewhere=elsewhere, n_threads=n_threads)


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
    return repair_store(opened, model=source, elsewhere=elsewhere, n_threads=n_threads, on_progress=on_progress)


def trim(store: str | Path) -> TrimReport:
    """Drop shards that can be made again until the store's quota holds, or as many as may go.

    Raises:
        InvalidRequest: the store has no quota.
        StoreError, StorageFailed: see ``lamella.quantize.trimming.trim``.
    """
    return trim_store(Store.open(Path(store)))


# Remote stores.  What speaks HTTP is imported where it is used: it takes a fifth of a second, which no other command
# should wait for.


@contextlib.contextmanager
def shard_source(where: str, token: str | None = None) -> Iterator[ShardSource]:
    """Somewhere to take shards over from: the folder of another store, or the URL of a remote one.

    Args:
        token: that a server asks for.

    Raises:
        StoreError: there is no store in that folder.
    """
    if not where.startswith(("http://", "https://")):
        yield FolderSource(Store.open(Path(where)))
        return
    from lamella.remote.remote_store import RemoteStore

    with RemoteStore(where, token) as remote:
        yield remote


def pull(
    source: str,
    store: str | Path,
    name: str | None = None,
    *,
    token: str | None = None,
    n_connections: int = 4,
    on_progress: OnTransfer = lambda _: None,
) -> PullReport:
    """Take a variant over from a remote store; only the shards that the local one lacks travel.

    Args:
        source: ``URL@VARIANT``; the variant may be left out where the server lists a single one.
        store: folder of the local store; made if it does not exist.
        name: of the variant here; None: the same as there.
        token: for servers that ask for one.

    Raises:
        InvalidRequest: no URL, or no variant was named where there are several.
        RemoteFailed, StoreError, StorageFailed: see ``lamella.remote.pull.pull_variant``.
    """
    from lamella.remote.addresses import split_address
    from lamella.remote.pull import pull_variant
    from lamella.remote.remote_store import RemoteStore

    url, variant = split_address(source)
    with RemoteStore(url, token) as remote:
        wanted = variant or remote.only_variant()
        return pull_variant(
            remote, wanted, Path(store), local_name=name, n_connections=n_connections, on_progress=on_progress
        )


def push(
    store: str | Path,
    variant: str,
    target: str | Path,
    *,
    token: str | None = None,
    n_connections: int = 4,
    on_progress: OnTransfer = lambda _: None,
) -> PushReport:
    """Send a variant to a remote store: a URL that takes ``PUT``, or a folder.

    Raises:
        RemoteFailed, StoreError, StorageFailed: see ``lamella.remote.push``.
    """
    from lamella.remote.addresses import is_url
    from lamella.remote.push import push_to_folder, push_to_web
    from lamella.remote.web import Web

    opened = open_store(store)
    if not is_url(str(target)):
        return push_to_folder(opened, variant, Path(target), on_progress=on_progress)
    with Web(str(target), token) as web:
        return push_to_web(opened, variant, web, n_connections=n_connections, on_progress=on_progress)


def serving_store(
    store: str | Path, host: str = "127.0.0.1", port: int = 8090, *, token: str | None = None
) -> StoreServer:
    """A read-only web server for a store; ``run`` it, and ``close`` it (or use it in a ``with`` block).

    Raises:
        StoreFormatError: no store.
        InvalidRequest: the address is taken, or not of this machine.
    """
    from lamella.remote.serving import StoreServer

    return StoreServer(Store.open(Path(store)), host, port, token)


def pull_from_hub(
    source: str, folder: str | Path | None = None, *, llama_cpp: Path | None = None, quiet: bool = False
) -> HubReport:
    """Fetch a model file from the Hugging Face Hub: ``hf:OWNER/REPO`` or ``hf:OWNER/REPO/FILE``.

    Args:
        folder: where it goes; None: a folder of the repository's name.
        llama_cpp: checkout of llama.cpp, for repositories that have safetensors only.

    Raises:
        InvalidRequest, RemoteFailed: see ``lamella.remote.hub.pull_from_hub``.
    """
    from lamella.remote import hub
    from lamella.remote.conversion import Converter

    parsed = hub.HubSource.parse(source)
    target = Path(folder) if folder is not None else Path(parsed.repository.partition("/")[2])
    return hub.pull_from_hub(parsed, target, converter=Converter(llama_cpp), quiet=quiet)


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
    on_progress: OnMeasure = _silent,
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


def kernel_times(
    type_names: Iterable[str], n_threads: int = 0, *, cache_folder: Path | None = None
) -> dict[str, KernelTimes]:
    """How fast this machine multiplies by weights of each ggml type, mapped and repacked.

    Args:
        n_threads: 0 for all cores that this process may use.
        cache_folder: as ``open_engine``.
    """
    return _kernel_table(n_threads, cache_folder).times(type_names)


def measured_prices(
    losses: Sequence[TensorLoss], n_threads: int = 0, *, cache_folder: Path | None = None
) -> dict[str, TypePrice]:
    """How fast this machine multiplies by each type that the losses name; half a second for each, the first time.

    Types that cannot be written without an importance matrix have no price.  Arguments as ``kernel_times``.
    """
    names = {name for loss in losses for name in loss.by_type if name in GGML_TYPES}
    return prices_of(kernel_times(names, n_threads, cache_folder=cache_folder))


def frontier(
    model: str | Path,
    measurement: Measurement,
    *,
    points: int = DEFAULT_POINTS,
    min_bits: float | None = None,
    max_bits: float | None = None,
    constraints: Constraints | None = None,
    prices: Prices | None = None,
) -> Frontier:
    """The least predicted loss at each size, and the plan for it, in one call.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        measurement: what each tensor loses at each type.
        points: how many sizes, evenly spaced in bits per weight.
        min_bits, max_bits: ends of the range; None: the smallest plan, and at most 8.5.
        prices: from ``measured_prices``, to predict speeds too.

    Raises:
        InvalidRequest, ArtifactError: see ``lamella.planning.frontier.frontier``.
    """
    request = _loss_request(model, measurement)
    request = replace(request, constraints=constraints or Constraints(), prices=prices or {})
    return planning_frontier.frontier(request, points, min_bits, max_bits)


def ladder(
    model: str | Path,
    measurement: Measurement,
    *,
    steps: int | None = None,
    first_bits: float | None = None,
    last_bits: float | None = None,
    memory: Sequence[str | int] = (),
    budget: str | int | None = None,
    worst_ratio: float = DEFAULT_RATIO,
    constraints: Constraints | None = None,
    context: int | None = None,
    parallel: int = 1,
    kv_type: str = "F16",
) -> Ladder:
    """Plan several variants together, so that a store holds their common layers once.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        measurement: what each tensor loses at each type.
        steps, first_bits, last_bits: so many steps, evenly spaced in bits per weight; default 6, from 8.5 to the
            smallest plan's.
        memory: in place of these: one step for each memory size, what else running needs included.
        budget: for the weights of all steps: ``1.6x`` (times the largest step), or bytes; None: as little as
            ``worst_ratio`` allows.
        worst_ratio: without a budget: predicted loss of a step, at most, against that of the step planned alone.
        context, parallel, kv_type: with memory: what it is kept for.

    Raises:
        InvalidRequest, DoesNotFit, ArtifactError: see ``lamella.planning.ladder.plan_ladder``.
    """
    base = replace(_loss_request(model, measurement), constraints=constraints or Constraints())
    joint = JointBudget.parse(budget) if isinstance(budget, str) else JointBudget(n_bytes=budget) if budget else None
    if not memory:
        sizes = evenly_spaced(base.spec, *_range_of_steps(base, steps, first_bits, last_bits))
        return plan_ladder([replace(base, weights_bytes=size) for size in sizes], joint, worst_ratio)
    if steps is not None or first_bits is not None or last_bits is not None:
        raise InvalidRequest("a ladder has steps from bits to bits, or one for each memory size, not both")
    needs = _needs(model, base.spec, "ladder", context, parallel, kv_type)
    budgets = [_as_bytes(size) for size in memory]
    return plan_ladder([replace(needs(base, b), budget_bytes=b) for b in budgets], joint, worst_ratio)


def _range_of_steps(
    request: PlanRequest, steps: int | None, first_bits: float | None, last_bits: float | None
) -> tuple[int, float, float]:
    if last_bits is None:
        last_bits = planning_frontier.frontier(request, 2).points[0].bits_per_weight
    return (
        DEFAULT_STEPS if steps is None else steps,
        DEFAULT_FIRST_BITS if first_bits is None else first_bits,
        last_bits,
    )


def predicted_loss(model: str | Path, measurement: Measurement, plan: Plan) -> float | None:
    """Nats a token that any plan of the model is predicted to lose; None where it has a type without a prediction.

    Raises:
        ArtifactError: the plan or the measurement are for another model.
    """
    request = _loss_request(model, measurement)
    check_same_structure(plan, request.spec.identity, "the plan")
    return planning_frontier.predicted_loss(request, plan.tensors)


def _loss_request(model: str | Path, measurement: Measurement) -> PlanRequest:
    request = PlanRequest(load_spec(model), losses=_losses(measurement))
    check_same_weights(measurement, request.spec.identity)
    return request


def _losses(measurement: Measurement | None) -> tuple[TensorLoss, ...]:
    """The tensors' losses.

    Raises:
        InvalidRequest: there is no measurement, or one of a metric that looks at layers only.
    """
    if measurement is None:
        raise InvalidRequest(f"policy knapsack needs a measurement of what each tensor loses ({_LOSS_METRIC})")
    if not measurement.tensors:
        raise InvalidRequest(
            f"a measurement of metric {measurement.metric} does not say what each tensor loses at each type; "
            f"policy knapsack needs one that does ({_LOSS_METRIC})"
        )
    return tuple(measurement.tensors)


def _weights_bytes(model: str | Path, spec: ModelSpec, file_bytes: int | None) -> int | None:
    """What a file of so many bytes leaves for weights: the source's metadata is in it too."""
    if file_bytes is None or str(model).startswith(SPEC_PREFIX):
        return file_bytes
    metadata = sum(path.stat().st_size for path in load(model).paths) - spec.n_bytes
    if metadata >= file_bytes:
        raise InvalidRequest(
            f"a file of {format_bytes(file_bytes)} holds no weights: the metadata alone takes {format_bytes(metadata)}"
        )
    return file_bytes - metadata


def _kernel_table(n_threads: int, cache_folder: Path | None) -> KernelTable:
    return KernelTable(cache_folder / "kernels.json" if cache_folder else None, n_threads or usable_cores())


def default_name(plan: Plan) -> str:
    """A variant's name after its plan, with ``-channel`` behind it for that scheme.

    ``alpha-0.5``, ``uniform-int4``, ``lsaq-6.00GiB``, ``lwq-cosine-7bits``, ``random-seed3-5.5bpw``, ``stock-q4_k_m``,
    and ``stock-q4_k_m-imatrix`` where its types were chosen for an importance matrix; ``knapsack-4.50bpw`` and
    ``ladder-4.50bpw`` by the bits that it has, where no memory budget was given.
    """
    if plan.policy == "alpha":
        name = f"alpha-{plan.settings['alpha']:g}"
    elif plan.policy == "uniform":
        name = f"uniform-{plan.layers[0].precision}"
    elif plan.policy == "stock":
        name = f"stock-{plan.settings['mix']}".lower() + ("-imatrix" if plan.settings["imatrix"] == "yes" else "")
    elif plan.policy in ("knapsack", "ladder") and plan.budget_bytes is None:
        name = f"{plan.policy}-{plan.bits_per_weight:.2f}bpw"
    else:
        seed = plan.settings.get("seed")
        name = plan.policy + (f"-seed{seed}" if seed else "") + _limit_name(plan)
    return name if plan.scheme == "block" else f"{name}-{plan.scheme}"


def _limit_name(plan: Plan) -> str:
    """How large the plan was allowed to be, for a name; "" without a limit."""
    if plan.budget_bytes:
        return f"-{format_bytes(plan.budget_bytes)}".replace(" ", "")
    for setting, unit in (("target_average_bits", "bits"), ("target_bits_per_weight", "bpw")):
        if setting in plan.settings:
            return f"-{plan.settings[setting]:g}{unit}"
    return ""


def read_measurement(path: Path) -> Measurement:
    """Read a measurement file.

    Raises:
        ArtifactError: it cannot be read, or is no measurement.
    """
    return from_json(Measurement, _read(path), str(path))


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ArtifactError: it cannot be read, or is no plan.
    """
    return from_json(Plan, _read(path), str(path))


def write_artifact(artifact: Measurement | Plan, path: Path) -> None:
    """Write a document, whole or not at all.

    Raises:
        StorageFailed: the file system refused.
    """
    _write_whole(to_json(artifact), path)


def read_importance(path: Path) -> ImportanceMatrix:
    """Read an importance matrix, of Lamella or of llama-imatrix.

    Raises:
        ArtifactError: it cannot be read, or is none.
    """
    return read_imatrix(path)


def write_importance(matrix: ImportanceMatrix, path: Path) -> None:
    """Write an importance matrix as llama-imatrix does, whole or not at all.

    Raises:
        StorageFailed: the file system refused.
    """
    _write_whole(serialise_imatrix(matrix), path)


def _write_whole(data: bytes, path: Path) -> None:
    with new_file(path, len(data), replace=True) as file:
        file.write(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error


def _as_bytes(memory: str | int | None) -> int | None:
    if isinstance(memory, int) and memory <= 0:
        raise InvalidRequest(f"a memory size must be more than zero bytes, not {memory}")
    return parse_bytes(memory) if isinstance(memory, str) else memory


def _stock(model: str | Path, mix: str, importance: ImportanceMatrix | None) -> StockTypes:
    """The types of a mix, by llama.cpp's own dry run."""
    if str(model).startswith(SPEC_PREFIX):
        raise InvalidRequest(f"policy stock asks llama.cpp about a model file, and {model} is a specification")
    mix, source = canonical_mix(mix), load(model)
    if importance is not None:
        importance.check_model(source.spec.identity, source.spec.tensors)
    with_importance = importance is not None
    return StockTypes(mix, with_importance, stock_types(source.paths, mix, with_importance=with_importance))


def _measured_now(model: str | Path, policy: str, on_progress: OnMeasure) -> Measurement | None:
    """What the policy wants to know, where it wants to know something that can be measured."""
    return measure(model, METRICS[policy], on_progress=on_progress) if needs_measuring(model, policy) else None


def _with_measurement(request: PlanRequest, policy: str, measurement: Measurement | None) -> PlanRequest:
    """The request with what was measured of layers; ``knapsack`` looks at tensors (``_Goal``)."""
    if measurement is None:
        return request
    check_same_weights(measurement, request.spec.identity)
    importance = None if policy == "knapsack" else measurement.importance()
    return replace(request, importance=importance, settings={"metric": measurement.metric})


def needs_measuring(model: str | Path, policy: str) -> bool:
    """Whether a policy wants to know the layers' importance, and there are weights to measure it on."""
    return policy in METRICS and not str(model).startswith(SPEC_PREFIX)


def _needs(
    model: str | Path, spec: ModelSpec, policy: str, context: int | None, parallel: int, kv_type: str
) -> Callable[[PlanRequest, int | None], PlanRequest]:
    """How to add to a request what running needs besides weights; the dry run is made once."""
    is_spec = str(model).startswith(SPEC_PREFIX)
    if is_spec and policy in LADDER and context is None:
        return lambda request, _: request  # LSAQ's own arithmetic
    n_ctx = context if context is not None else min(DEFAULT_CONTEXT, spec.context_length or DEFAULT_CONTEXT)
    options = ContextOptions(n_ctx=n_ctx, n_sequences=parallel, kv_type=kv_type, n_outputs=parallel)
    settings: Mapping[str, int | float | str] = {"context": n_ctx, "parallel": parallel, "kv_type": kv_type.upper()}
    dry_run = spec_overhead(spec, options) if is_spec else file_overhead(load(model).paths, options)

    def add(request: PlanRequest, budget_bytes: int | None) -> PlanRequest:
        overhead = replace(dry_run, reserve_bytes=default_reserve(budget_bytes))
        return replace(request, overhead=overhead, settings={**request.settings, **settings})

    return add
