"""Stores that benchmarks of the server need: stock mixes of one model, side by side."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import rival
from benchmarks.common import open_model, plan_like, reference_model
from lamella.llama.context import usable_cores
from lamella.quantize.build import build_variant
from lamella.store.store import Store


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
    """A store with one variant for each mix of llama-quantize, by the mix's name and with its types.

    llama-server opens the files of each as they are (``Store.first_link``).  What is there already stays.
    """
    source = reference_model(model)
    reference = open_model(source)
    store = Store.open(path) if path.exists() else Store.create(path, reference.spec.identity)
    present = {variant.name for variant in store.readable_variants()[0]}
    for mix in [mix for mix in mixes if mix not in present]:
        example = path.parent / f"{mix}.gguf"
        rival.quantize(source, example, mix, usable_cores())
        build_variant(reference, plan_like(open_model(example), reference, mix.lower()), store, mix)
        example.unlink()
    return store
