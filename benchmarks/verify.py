"""Claim: ``lamella store verify`` hashes at no less than 0.8 times the speed of sha256sum with as many processes.

    .venv/bin/python -m benchmarks.verify [--model qwen-0.5b] [--rounds 5]

The same shard files, in the page cache, the two in turn.  ``xargs -P`` gives sha256sum one file at a time, largest
first as verify does.  ``ratio`` is sha256sum's median time by ours; the command line's start is in neither.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import lamella
from benchmarks.common import record, reference_model, spread, table
from lamella.store.store import Store

PRECISIONS = ("fp16", "int8", "int6", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen-0.5b")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = reference_model(args.model)
    with tempfile.TemporaryDirectory(prefix="lamella-verify-") as folder:
        for precision in PRECISIONS:
            plan = lamella.plan(model, "uniform", precision=precision)
            lamella.build(model, Path(folder) / "store", plan)
        store = Store.open(Path(folder) / "store")
        shards = sorted(store.path.glob("shards/*/*.gguf"), key=lambda path: -path.stat().st_size)
        n_bytes = sum(path.stat().st_size for path in shards)
        ours, rival = [], []
        for _ in range(args.rounds + 1):
            rival.append(_sha256sum(shards))
            ours.append(_verify(store))
    ours, rival = ours[1:], rival[1:]  # the first round fills the page cache
    ratio = statistics.median(rival) / statistics.median(ours)
    rows = [("sha256sum", rival), ("lamella", ours)]
    speeds = [[name, statistics.median(s), n_bytes / 2**20 / statistics.median(s)] for name, s in rows]
    table([["", "seconds", "MiB/s"], *speeds])
    result = {"bytes": n_bytes, "files": len(shards), "sha256sum_s": spread(rival), "verify_s": spread(ours)}
    record(f"verify-{args.model}", {"ratio": ratio, **result})


def _sha256sum(shards: Sequence[Path]) -> float:
    names = "\0".join(map(str, shards)).encode()
    start = time.perf_counter()
    command = ["xargs", "-0", "-n", "1", "-P", str(len(os.sched_getaffinity(0))), "sha256sum"]
    subprocess.run(command, input=names, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _verify(store: Store) -> float:
    start = time.perf_counter()
    assert store.verify().ok
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
