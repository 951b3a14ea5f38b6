"""Results that are kept as soon as they are there: an interruption loses the one that was being worked on.

finished = Finished(folder / "points.json")
row = finished.get(problem, lambda: solve(problem))       # at once where it was asked before
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Finished:
    """Results in a file, by what was asked."""

    def __init__(self, file: Path) -> None:
        """Read what is there; the file is made with the first result."""
        self._file = file
        self._found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def get(self, question: object, answer: Callable[[], Any]) -> Any:
        """The answer to a question, from the file or found now.

        Args:
            question: whose ``repr`` says all that the answer depends on.
            answer: finds it, as something that JSON holds.
        """
        name = hashlib.sha256(repr(question).encode()).hexdigest()
        if name not in self._found:
            self._found[name] = answer()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".part")
            partial.write_text(json.dumps(self._found))
            partial.replace(self._file)
        return self._found[name]
