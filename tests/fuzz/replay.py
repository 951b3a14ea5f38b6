"""Which lines the inputs of a corpus reach: ``python -m tests.fuzz.replay NAME CORPUS`` prints JSON, by module."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from pathlib import Path

import coverage
import msgspec


def main(name: str, corpus: Path) -> None:
    """Read all inputs once."""
    measured = coverage.Coverage(data_file=None, source_pkgs=["lamella"])
    measured.start()
    from tests.fuzz.harness import Escaped, Hung, try_one
    from tests.fuzz.registry import HARNESSES

    harness = HARNESSES[name]
    for path in sorted(corpus.iterdir()):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception, Escaped, Hung):
            try_one(harness, path.read_bytes(), Path(folder))
    measured.stop()
    reached = {}
    for module in harness.modules:
        spec = importlib.util.find_spec(f"lamella.{module}")
        assert spec is not None
        assert spec.origin is not None
        _, statements, _, missing, _ = measured.analysis2(spec.origin)
        reached[module] = [len(statements) - len(missing), len(statements)]
    sys.stdout.buffer.write(msgspec.json.encode(reached) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
