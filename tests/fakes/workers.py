"""What children of the crash and stress tests do: ``python -m tests.fakes.workers ROLE STORE ...``.

Each prints ``ready``, waits for a line, works, and prints what it did as one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lamella.core.artifacts import Plan
from lamella.core.errors import UnknownVariant
from lamella.core.model import ModelSpec
from lamella.llama.context import ContextOptions
from lamella.llama.gguf import read_model
from lamella.quantize.build import build_variant
from lamella.quantize.rebuild import restorer
from lamella.quantize.trimming import trim
from lamella.remote.pull import pull_variant
from lamella.remote.remote_store import RemoteStore
from lamella.run.engine import Engine, EngineOptions
from lamella.store.store import Store
from tests.fakes.crashes import READY
from tests.fakes.plans import make_plan

N_KEPT = 1  # variants that builders under stress leave standing
LEAST_ROUNDS = 3  # of whoever works for some seconds, also on a machine that is very busy
PRECISIONS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F16")


def mixed_plan(spec: ModelSpec, number: int) -> Plan:
    """The plan of variant ``number``: the same for everybody, with layers that others have and layers that none has."""
    choose = random.Random(number)
    return make_plan(spec, [choose.choice(PRECISIONS) for _ in range(spec.n_layers)])


def build_once(folder: str, model: str, name: str) -> dict[str, int]:
    """Build one variant of one precision."""
    source = read_model(Path(model))
    plan = make_plan(source.spec, "int4")
    _ready()
    report = build_variant(source, plan, Store.create(Path(folder), source.spec.identity), name)
    return {"made": report.n_shards - report.n_reused}


def pull_once(folder: str, url: str, name: str) -> dict[str, int]:
    """Pull one variant."""
    with RemoteStore(url) as remote:
        _ready()
        return {"fetched": pull_variant(remote, name, Path(folder)).n_fetched}


def pull_over(folder: str, url: str, name: str) -> dict[str, int]:
    """Pull one variant in the place of ``current``."""
    with RemoteStore(url) as remote:
        _ready()
        report = pull_variant(remote, name, Path(folder), local_name="current", replace=True)
        return {"fetched": report.n_fetched}


def replace_on(folder: str, name: str, seconds: str) -> dict[str, int]:
    """Put the other variants of the store in the place of one of them, again and again."""
    store = Store.open(Path(folder))
    others = [variant for variant in store.variants() if variant.name != name]
    did = {"replaced": 0}

    def replace() -> None:
        other = others[did["replaced"] % len(others)]
        store.add_variant(name, other.plan, other.shards, replace=True)
        did["replaced"] += 1

    _until(float(seconds), replace)
    return did


def collect_once(folder: str) -> dict[str, int]:
    """Collect garbage."""
    store = Store.open(Path(folder))
    _ready()
    return {"removed": store.collect_garbage().n_shards}


def build_on(folder: str, model: str, seconds: str) -> dict[str, int]:
    """Build variants 0, 1, 2 ... and remove the old ones; other builders do the same."""
    source, store = read_model(Path(model)), Store.open(Path(folder))
    did = {"variants": 0, "made": 0}

    def build() -> None:
        number = did["variants"]
        report = build_variant(source, mixed_plan(source.spec, number), store, f"v{number}", n_threads=1)
        did["variants"] += 1
        did["made"] += report.n_shards - report.n_reused
        if number >= N_KEPT:
            store.remove(f"v{number - N_KEPT}")

    _until(float(seconds), build)
    return did


def collect_on(folder: str, seconds: str, seed: str) -> dict[str, int]:
    """Collect garbage again and again, until there was some."""
    store, pauses = Store.open(Path(folder)), random.Random(int(seed))
    did = {"collections": 0, "removed": 0}

    def collect() -> None:
        did["removed"] += store.collect_garbage().n_shards
        did["collections"] += 1
        time.sleep(pauses.uniform(0, 0.02))

    _until(float(seconds), collect, lambda: did["removed"] > 0)
    return did


def trim_on(folder: str, seconds: str, seed: str) -> dict[str, int]:
    """Drop all that may be dropped, again and again."""
    store, pauses = Store.open(Path(folder)), random.Random(int(seed))
    did = {"dropped": 0}

    def drop() -> None:
        did["dropped"] += len(trim(store).dropped)
        time.sleep(pauses.uniform(0, 0.02))

    _until(float(seconds), drop)
    return did


def load_on(folder: str, seconds: str, seed: str) -> dict[str, int]:
    """Hold a variant, get back what of it is not there, dawdle, hash all of it."""
    store, choose = Store.open(Path(folder), restorer(1)), random.Random(int(seed))
    did = {"loads": 0}

    def load() -> None:
        with store.lease(reading=True) as lease:
            variant = lease.hold(choose.choice(store.variant_names() or ["v0"]))
            store.ready_paths(variant)
            time.sleep(choose.uniform(0, 0.05))
            store.check(variant)
            did["loads"] += 1

    _until(float(seconds), load)
    return did


def run_on(folder: str, seconds: str, seed: str) -> dict[str, int]:
    """Run a model and switch it from variant to variant, all hashes checked."""
    store, choose = Store.open(Path(folder), restorer(1)), random.Random(int(seed))
    options = EngineOptions(ContextOptions(n_ctx=64, n_threads=1), layout="mapped", check=True)
    did = {"loads": 0, "tokens": 0}

    def run() -> None:
        with Engine.open(store, choose.choice(store.variant_names() or ["v0"]), options) as engine:
            for _ in range(10):
                did["tokens"] += sum(1 for _ in engine.generate("once upon a time", max_tokens=3))
                engine.switch(choose.choice(store.variant_names() or ["v0"]))
                did["loads"] += 1

    _until(float(seconds), run)
    return did


def _until(seconds: float, do: Callable[[], None], is_enough: Callable[[], bool] = lambda: True) -> None:
    """Do it again and again; a variant that somebody else has removed is no error."""
    _ready()
    end, n_done = time.monotonic() + seconds, 0
    while time.monotonic() < end or n_done < LEAST_ROUNDS or not is_enough():
        try:
            do()
        except UnknownVariant:
            continue
        n_done += 1


def _ready() -> None:
    _tell(READY)
    sys.stdin.readline()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


ROLES: dict[str, Callable[..., dict[str, int]]] = {
    "build": build_once,
    "pull": pull_once,
    "pull-over": pull_over,
    "replace-on": replace_on,
    "collect": collect_once,
    "build-on": build_on,
    "collect-on": collect_on,
    "trim-on": trim_on,
    "load-on": load_on,
    "run-on": run_on,
}

if __name__ == "__main__":
    _tell(json.dumps(ROLES[sys.argv[1]](*sys.argv[2:])))
