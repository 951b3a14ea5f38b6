"""Question: what does a KV cache cost that another variant computed, and that a switch keeps?

    .venv/bin/python -m benchmarks.kept_cache [--model smollm2] [--store STORE --variants large,small] [--windows 16]

A text is read to its middle by one variant; then the engine switches, and the second half is read by the other, on the
kept cache.  The same second half on a cache that the other variant computed itself is what recomputing would give, and
the reference (F16) says how good either is.  For both directions, and by distance from the switch:

* ``moved``: KL(recomputed || kept), what keeping changes;
* ``kept``, ``recomputed``: KL(reference || ...), what keeping costs or gains in quality;
* ``before``: KL(reference || the variant before), what not switching would have given.

Without --store a store is made of uniform 8-bit and 4-bit variants and one at 2 to 3 bits.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lamella
from benchmarks.common import DATA, record, reference_model, table
from lamella import api
from lamella.evaluating.subject import Room, Subject
from lamella.llama.logits import Reference
from lamella.store.store import Store

WINDOW = 1024
HALF = WINDOW // 2
NEAR = 16
"""Tokens after a switch that are shown by themselves."""
REFERENCE = "reference"
Values = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--variants", default="int8,int4,int3")
    parser.add_argument("--windows", type=int, default=16)
    args = parser.parse_args()
    names = args.variants.split(",")
    with tempfile.TemporaryDirectory(prefix="lamella-kept-") as folder:
        store = Store.open(args.store) if args.store else uniform_store(args.model, names, Path(folder) / "store")
        add_reference(args.model, store)
        found = measure(store, names, args.windows)
    report(args.model, found, args.windows)


def uniform_store(model: str, names: Sequence[str], path: Path) -> Store:
    """A store with uniform variants."""
    for name in names:
        lamella.build(
            reference_model(model), path, lamella.plan(reference_model(model), "uniform", precision=name), name
        )
    return Store.open(path)


def add_reference(model: str, store: Store) -> None:
    """The model as it is, as a variant to compare with."""
    if REFERENCE not in [v.name for v in store.readable_variants()[0]]:
        api.import_file(reference_model(model), store.path, name=REFERENCE)


def measure(store: Store, names: Sequence[str], n_windows: int) -> dict[str, dict[str, Values]]:
    """For each switch, each divergence by distance from the switch: shape (windows, HALF)."""
    by_name = {v.name: v for v in store.readable_variants()[0]}
    text = (DATA / "wikitext2" / "wiki.test.raw").read_text()
    switches = list(itertools.permutations(names, 2))
    found: dict[str, dict[str, list[Values]]] = {f"{a}>{b}": {} for a, b in switches}
    with Subject(store, [by_name[REFERENCE], *(by_name[n] for n in names)]) as subject:
        subject.make_room(Room(WINDOW, HALF, HALF))
        tokens = subject.vocabulary.tokenize(text)
        bos = subject.vocabulary.bos
        for i in range(n_windows):
            window = tokens[i * WINDOW : (i + 1) * WINDOW]
            if bos >= 0:
                window[0] = bos
            read_window(subject, window, switches, found)
            print(f"window {i + 1} of {n_windows}", flush=True)
    return {s: {k: np.stack(v) for k, v in values.items()} for s, values in found.items()}


def read_window(
    subject: Subject,
    window: Sequence[int],
    switches: Sequence[tuple[str, str]],
    found: dict[str, dict[str, list[Values]]],
) -> None:
    reference = _held(subject, REFERENCE, REFERENCE, window)
    alone = {name: _held(subject, name, name, window) for name in {n for pair in switches for n in pair}}
    quality = {name: _divergences(reference, subject, name, name, window) for name in alone}
    for before, after in switches:
        kept = found[f"{before}>{after}"]
        kept.setdefault("moved", []).append(_divergences(alone[after], subject, before, after, window))
        kept.setdefault("kept", []).append(_divergences(reference, subject, before, after, window))
        kept.setdefault("recomputed", []).append(quality[after])
        kept.setdefault("before", []).append(quality[before])


def _held(subject: Subject, first: str, second: str, window: Sequence[int]) -> Reference:
    logits = subject.logits_across_switch(first, second, window, HALF)
    held = Reference(logits.shape)
    held.hold(logits, subject.survey(logits).normalizers, subject.n_threads)
    return held


def _divergences(reference: Reference, subject: Subject, first: str, second: str, window: Sequence[int]) -> Values:
    logits = subject.logits_across_switch(first, second, window, HALF)
    return reference.divergences(logits, subject.survey(logits).normalizers, subject.n_threads)


def report(model: str, found: dict[str, dict[str, Values]], n_windows: int) -> None:
    rows: list[list[object]] = [
        ["switch", "moved", f"moved, first {NEAR}", "kept", "recomputed", "before", "kept/recomputed", "+-"]
    ]
    document: dict[str, object] = {}
    for switch, values in found.items():
        mean = {k: float(v.mean()) for k, v in values.items()}
        difference = (values["kept"] - values["recomputed"]).mean(axis=1)
        error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("nan")
        near = float(values["moved"][:, :NEAR].mean())
        ratio = mean["kept"] / mean["recomputed"]
        rows.append(
            [switch, mean["moved"], near, mean["kept"], mean["recomputed"], mean["before"], ratio,
             error / mean["recomputed"]]
        )  # fmt: skip
        document[switch] = {
            **{k: round(v, 6) for k, v in mean.items()},
            "ratio": round(ratio, 4),
            "ratio_standard_error": round(error / mean["recomputed"], 4),
            "by_distance": {k: _by_distance(v) for k, v in values.items()},
        }
    table(rows)
    record(f"kept_cache-{model}", {"model": model, "windows": n_windows, "half": HALF, "switches": document})


def _by_distance(values: Values) -> list[float]:
    """Means over 1, 2, 4, ... tokens: the first after the switch, the next two, and so on."""
    edges = [0, *(2**i for i in range(HALF.bit_length()))]
    return [round(float(values[:, a:b].mean()), 6) for a, b in itertools.pairwise(edges)]


if __name__ == "__main__":
    main()
