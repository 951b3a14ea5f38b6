"""Claim: a model is served by its name alone, and from the second time on its first token comes within 3 s.

    .venv/bin/python -m benchmarks.first_start [--model smollm2] [--rounds 5]

``lamella serve MODEL`` with an empty cache, which measures, plans and builds; then the same command again, some times.
Timed from the start of the program to the first token of a stream that is asked for as soon as the server listens.
File pages are in memory, as they are after the first start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

from benchmarks.common import record, spread, table

PROMISED_SECONDS = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="folder that is kept, so that the first start may be left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-first-") as folder:
        run(args.model, args.rounds, args.cache or Path(folder))


def run(model: str, rounds: int, cache: Path) -> None:
    first, said = first_token_seconds(model, cache)
    later = [first_token_seconds(model, cache)[0] for _ in range(rounds)]
    table([["start", "s to the first token"], ["first", first], ["later, median", statistics.median(later)]])
    print("\n".join(said))
    name = Path(model).stem
    record(
        f"first_start-{name}",
        {
            "model": name,
            "first_seconds": first,
            "later_seconds": statistics.median(later),
            "later": spread(later),
            "is_kept": max(later) <= PROMISED_SECONDS,
            "said": said,
        },
    )


def first_token_seconds(model: str, cache: Path) -> tuple[float, list[str]]:
    """Seconds from the start of the program to the first token, and what the program said until it listened."""
    program = [sys.executable, "-m", "lamella", "serve", model, "--port", "0"]
    said: list[str] = []
    start = time.perf_counter()
    with subprocess.Popen(
        program, stderr=subprocess.PIPE, text=True, env=os.environ | {"LAMELLA_CACHE": str(cache)}
    ) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if line.startswith("listening on "):
                break
            said.append(line.rstrip())
        else:
            raise SystemExit("\n".join(said))
        seconds = _wait_for_token(line.split()[2].removesuffix(";"), start)
        server.terminate()
        server.communicate(timeout=60)
    return seconds, said


def _wait_for_token(url: str, start: float) -> float:
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Say hello."}], "stream": True, "max_tokens": 8}
    ).encode()
    with urlopen(Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"}), timeout=60) as answer:
        for line in answer:
            if b'"content":"' in line.replace(b": ", b":") and b'"content":""' not in line.replace(b": ", b":"):
                return time.perf_counter() - start
    raise SystemExit("no token came")


if __name__ == "__main__":
    main()
