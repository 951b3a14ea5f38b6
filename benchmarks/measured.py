"""What several benchmarks measure first: importance and sensitivity of a reference model, kept in a work folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lamella
from benchmarks.common import CALIBRATION
from lamella import api
from lamella.core.artifacts import Measurement
from lamella.llama.imatrix import ImportanceMatrix
from lamella.measuring import ImportanceSettings

IMPORTANCE_WINDOWS = 40


def importance_of(model: Path, work: Path) -> ImportanceMatrix:
    """Mean squared inputs of every weight column, on the start of wiki.valid.raw."""
    path = work / "imatrix.gguf"
    if not path.exists():
        say(f"gathering importance on {IMPORTANCE_WINDOWS} windows")
        settings = ImportanceSettings(windows=IMPORTANCE_WINDOWS)
        api.write_importance(lamella.gather_importance(model, [CALIBRATION], settings=settings), path)
    return api.read_importance(path)


def sensitivity_of(model: Path, importance: ImportanceMatrix, work: Path) -> Measurement:
    """What each tensor loses at each type, on windows of wiki.valid.raw."""
    path = work / "sensitivity.json"
    if not path.exists():
        say("measuring the sensitivity of every tensor")
        start = time.perf_counter()
        found = lamella.measure(
            model, "sensitivity", calibration=[CALIBRATION], importance=importance, journal=work / "probes.jsonl"
        )
        api.write_artifact(found, path)
        (work / "sensitivity.seconds").write_text(f"{time.perf_counter() - start:.1f}")
    return api.read_measurement(path)


def say(text: str) -> None:
    """A remark on the error stream."""
    print(text, file=sys.stderr, flush=True)
