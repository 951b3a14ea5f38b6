"""Stores that benchmarks of the server need: stock mixes of one model, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import rival
from benchmarks.common import open_model, plan_like, reference_model
from lamella.llama.context import usable_cores
from lamella.quantize.build import build_variant
from lamella.store.store import Store


def stock_store(model: str, mixes: Sequence[str], path: Path) -> Store:
    """A store with one variant for each mix of llama-quantize, by the mix's name and with its types.

    llama-server opens the files of each as they are (``Store.first_link``).
    """
    source = reference_model(model)
    reference = open_model(source)
    store = Store.create(path, reference.spec.identity)
    for mix in mixes:
        example = path.parent / f"{mix}.gguf"
        rival.quantize(source, example, mix, usable_cores())
        build_variant(reference, plan_like(open_model(example), reference, mix.lower()), store, mix)
        example.unlink()
    return store
