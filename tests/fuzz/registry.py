"""All harnesses.  A new parser of foreign bytes gets one; ``docs/security.md`` lists what was found by each."""

from __future__ import annotations

from tests.fuzz import documents, models, wire
from tests.fuzz.harness import Harness

HARNESSES: dict[str, Harness] = {h.name: h for h in (*documents.HARNESSES, *models.HARNESSES, *wire.HARNESSES)}
