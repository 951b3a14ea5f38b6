"""Loads llama.cpp, tests it, and says what it found: ``python -m lamella.doctor.selfcheck [MODEL]``.

Standard output gets one JSON document (``Report``) a line, the next with more in it: whatever ends the process, what
was found before is known.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import msgspec

from lamella.core.errors import DoesNotFit, LamellaError
from lamella.core.model import ModelSpec
from lamella.doctor.facts import LibraryFacts, ModelNeed
from lamella.llama import library
from lamella.llama.context import ContextOptions
from lamella.llama.devices import Device, list_devices
from lamella.llama.gguf import read_model
from lamella.planning.first_ladder import most_bits, most_stored_bits
from lamella.planning.request import PlanRequest
from lamella.planning.uniform import plan_uniform
from lamella.resources.catalogue import model_path
from lamella.resources.need import file_overhead

CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Report:
    """What the child process found.

    Attributes:
        need: of the model that was asked for; None before it was looked at, and where none was asked for.
    """

    library: LibraryFacts
    devices: tuple[Device, ...] = ()
    need: ModelNeed | None = None


def look_at_library() -> Report:
    """Load llama.cpp and prove that its memory is laid out as known."""
    try:
        version = library.installed_version()
        library.load()
    except LamellaError as error:
        return Report(LibraryFacts(error=str(error)))
    devices = list_devices()
    backends = tuple(dict.fromkeys(d.backend for d in devices))
    facts = LibraryFacts(version, "", library.features(), backends, library.supports_rpc())
    return Report(facts, devices)


def need_of(model: str) -> ModelNeed:
    """Memory of the smallest plan of a model."""
    try:
        found = read_model(model_path(model))
        n_ctx = min(CONTEXT, found.spec.context_length or CONTEXT)
        overhead = file_overhead(found.paths, ContextOptions(n_ctx=n_ctx))
        file_bytes = sum(path.stat().st_size for path in found.paths)
        try:
            plan_uniform(PlanRequest(found.spec, budget_bytes=1, overhead=overhead))
        except DoesNotFit as smallest:
            disk = disk_bytes(found.spec, file_bytes)
            return ModelNeed(model, "", smallest.needed_bytes, file_bytes, n_ctx, *disk)
    except (LamellaError, OSError) as error:
        return ModelNeed(model, error=str(error))
    raise AssertionError("one byte is never enough")


def disk_bytes(spec: ModelSpec, file_bytes: int) -> tuple[int, int]:
    """Of the largest variant that ``lamella prepare`` builds of a model, and at most of all of them."""
    largest, all_of_them = most_bits(spec.bits_per_weight), most_stored_bits(spec.bits_per_weight)
    beside = max(0, file_bytes - spec.n_bytes)  # tokenizer and metadata
    return int(largest * spec.n_weights / 8) + beside, int(all_of_them * spec.n_weights / 8) + beside


def main(arguments: list[str]) -> None:
    """Print what is found."""
    report = look_at_library()
    _print(report)
    if arguments and not report.library.error:
        _print(replace(report, need=need_of(arguments[0])))


def _print(report: Report) -> None:
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
