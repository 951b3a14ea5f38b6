"""Ways that were measured already, one file each: an interruption loses one way, and the next run measures the others.

kept = KeptWays(folder / "ways", terms)
kept.write("lowest", way)
kept.read("lowest")         # None where nothing was measured under these terms
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.replayed import Timeline
from lamella.qos.simulator.outcome import Served


@dataclass(frozen=True, slots=True)
class Way:
    """One way, live.

    Attributes:
        served: what each request had.
        timeline: which variant ran when; times from the trace's beginning.
        reasons: of the changes, in words; empty where nobody says any.
    """

    served: tuple[Served, ...]
    timeline: Timeline
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptWays:
    """Files of one benchmark.

    Attributes:
        folder: of the files.
        terms: trace, promise and profile; what was measured under others does not count.
    """

    folder: Path
    terms: Mapping[str, Any]

    def write(self, name: str, way: Way) -> None:
        """Keep what was measured; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self._path(name).with_suffix(".new")
        new.write_text(json.dumps({"terms": self.terms, "way": asdict(way)}))
        new.replace(self._path(name))

    def read(self, name: str) -> Way | None:
        """What was measured under the same terms."""
        if not self._path(name).exists():
            return None
        found = json.loads(self._path(name).read_text())
        if found["terms"] != dict(self.terms):
            return None
        way = found["way"]
        changes = [(at, variant) for at, variant in way["timeline"]["changes"]]
        timeline = Timeline(way["timeline"]["start"], changes)
        return Way(tuple(Served(**one) for one in way["served"]), timeline, tuple(way["reasons"]))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"
