"""Stores that benchmarks of the server need: variants of one model, side by side.

    stock_store("smollm2", ["Q8_0", "planned-6.5", "Q4_0"], path)

A *mix* is one of llama-quantize's, or ``planned-BITS``: what ``lamella plan --only`` makes of ``PLANNED_TYPES`` in so
many bits per weight, from what each tensor is measured to lose.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import rival
from benchmarks.common import DATA, commit, open_model, plan_like, reference_model
from lamella import api
from lamella.api.documents import read_measurement, write_artifact
from lamella.core.artifacts import Measurement, Plan
from lamella.core.cores import usable_cores
from lamella.llama.gguf import ModelFile
from lamella.measuring.settings import MeasureSettings
from lamella.planning.constraints import Constraints, all_but
from lamella.quantize.build import build_variant
from lamella.store.store import Store

PLANNED = "planned-"
PLANNED_TYPES = ("Q8_0", "Q4_0")
"""Those that llama.cpp multiplies fastest on a CPU, several rows at a time: one type more may be slower, not faster."""
CALIBRATION = DATA / "wikitext2" / "wiki.valid.raw"


def resumed_folder(asked: Path | None, name: str) -> Path:
    """Where a benchmark keeps what it has finished, for an interrupted run to go on: at one commit, as its record says.

    Args:
        asked: the folder above; None for the system's temporary one.
        name: of the benchmark there.
    """
    return (asked or Path(tempfile.gettempdir()) / f"lamella-{name}") / commit()


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """A folder for stores and logs: ``kept``, or one that is deleted at the end."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="lamella-serve-") as name:
        yield Path(name)


def stock_store(model: str, mixes: Sequence[str], path: Path) -> Store:
    """A store with one variant for each mix, by the mix's name; files of any open in llama-server (``first_link``).

    What is there already stays.
    """
    source = reference_model(model)
    reference = open_model(source)
    store = Store.open(path) if path.exists() else Store.create(path, reference.spec.identity)
    present = {variant.name for variant in store.readable_variants()[0]}
    for mix in [mix for mix in mixes if mix not in present]:
        plan = _planned(source, float(mix.removeprefix(PLANNED)), path) if mix.startswith(PLANNED) else None
        build_variant(reference, plan or _stock_plan(source, reference, mix, path), store, mix)
    return store


def _stock_plan(source: Path, reference: ModelFile, mix: str, path: Path) -> Plan:
    """With the types that llama-quantize chooses."""
    example = path.parent / f"{mix}.gguf"
    rival.quantize(source, example, mix, usable_cores())
    plan = plan_like(open_model(example), reference, mix.lower())
    example.unlink()
    return plan


def _planned(source: Path, bits_per_weight: float, path: Path) -> Plan:
    """With those of ``PLANNED_TYPES`` that lose least."""
    found = _measured(source, path.parent / f"sensitivity-{source.stem}.json")
    types = Constraints(all_but(PLANNED_TYPES))
    return api.plan(source, "knapsack", bits_per_weight=bits_per_weight, constraints=types, measurement=found)


def _measured(source: Path, kept: Path) -> Measurement:
    """What each tensor loses on text that no benchmark is scored on."""
    if kept.exists():
        return read_measurement(kept)
    settings = MeasureSettings(samples=4, window_tokens=128)
    found = api.measure(
        source, "sensitivity", calibration=[str(CALIBRATION)], settings=settings, journal=kept.with_suffix(".probes")
    )
    write_artifact(found, kept)
    return found
