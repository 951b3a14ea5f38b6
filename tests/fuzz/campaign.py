"""One harness for a while, guided by coverage: ``python -m tests.fuzz.campaign NAME FOLDER SECONDS``.

atheris (libFuzzer for Python) keeps in ``FOLDER/corpus`` each input that reached something new.  What goes wrong is
noted in ``FOLDER/findings``, one input for each kind and place, and the run goes on; only what kills the process ends
it.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["lamella"]):
    from tests.fuzz.harness import Escaped, Harness, Hung, try_one
    from tests.fuzz.mutating import mutated
    from tests.fuzz.registry import HARNESSES
    from tests.fuzz.words import dictionary

MOST_INPUT_BYTES = 1 << 15
MOST_MEMORY_MIB = 2048
ATHERIS_SECONDS = 86_400
"""atheris' own limit of one input, by the clock on the wall; ``harness.try_one`` has one by processor time.

0 does not switch it off: atheris ends the process ("fuzz target exited") at the first input that is not read within the
second in which it began, as any is on a machine that stands still for a moment.
"""


def main(name: str, folder: Path, seconds: int) -> None:
    """Fuzz, and end the process."""
    harness = HARNESSES[name]
    corpus, findings = folder / "corpus", folder / "findings"
    for made in (corpus, findings):
        made.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(harness.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}", f"-max_len={MOST_INPUT_BYTES}", f"-rss_limit_mb={MOST_MEMORY_MIB}",
        f"-artifact_prefix={findings}/", f"-timeout={ATHERIS_SECONDS}", "-print_final_stats=1",
        f"-dict={_write_words(harness, folder)}", str(corpus),
    ]  # fmt: skip

    def change(data: bytes, most_bytes: int, seed: int) -> bytes:
        chance = Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most_bytes))
        return mutated(data, harness.form, chance, harness.words)[:most_bytes]

    atheris.Setup([sys.argv[0], *options], lambda data: _one(harness, data, findings), custom_mutator=change)
    atheris.Fuzz()


def _write_words(harness: Harness, folder: Path) -> Path:
    path = folder / "words.dict"
    path.write_text(dictionary(harness.words))
    return path


def _one(harness: Harness, data: bytes, findings: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        try:
            try_one(harness, data, Path(folder))
        except (Exception, Escaped, Hung) as error:
            _note(error, data, findings)


def _note(error: BaseException, data: bytes, findings: Path) -> None:
    """The first input of each kind of error from each place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/lamella/" in frame.filename]
    at = ours[-1] if ours else last
    place = findings / f"{type(error).__name__}-{Path(at.filename).stem}-{at.lineno}"
    if not place.exists():
        place.write_bytes(data)
        place.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
