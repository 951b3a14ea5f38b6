"""A context's whole KV cache in a file, for another context of the same model and shape, in another process.

    n_bytes = save_cache(context, path)
    load_cache(other, path)

llama.cpp reads each layer's cells in one piece where all sequences are saved together.  One sequence alone may lie in
as many pieces as it has tokens, each of which is a message where a layer is on another machine.
"""

from __future__ import annotations

import ctypes as ct
import os
from pathlib import Path

from lamella.core.errors import EngineFailed
from lamella.llama import library, log
from lamella.llama.context import Context


def save_cache(context: Context, path: Path) -> int:
    """Write what the cache holds, of all sequences; returns bytes.

    Raises:
        EngineFailed: llama.cpp cannot, or the disk is full.
    """
    log.forget_complaints()
    no_tokens = (ct.c_int32 * 1)()
    if not library.load().llama.llama_state_save_file(context.address, os.fsencode(path), no_tokens, 0):
        raise EngineFailed(f"llama.cpp cannot save the KV cache in {path}: {log.complaints()}")
    return path.stat().st_size


def load_cache(context: Context, path: Path) -> None:
    """Put what ``save_cache`` wrote into the cache; what was there before is dropped, whatever happens.

    Raises:
        EngineFailed: it is of another model or another kind of cache, has more cells, or is damaged.
    """
    log.forget_complaints()
    context.clear()
    no_tokens, n_tokens = (ct.c_int32 * 1)(), ct.c_size_t()
    if not library.load().llama.llama_state_load_file(
        context.address, os.fsencode(path), no_tokens, 1, ct.byref(n_tokens)
    ):
        context.clear()
        raise EngineFailed(f"llama.cpp cannot use the KV cache in {path}: {log.complaints()}")


def length(context: Context, sequence: int) -> int:
    """Positions of a sequence that the cache holds; of a cache with sliding windows, those it once held."""
    llama = library.load().llama
    return int(llama.llama_memory_seq_pos_max(llama.llama_get_memory(context.address), sequence)) + 1
