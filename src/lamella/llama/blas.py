"""How many threads numpy's matrix products take.

    with one_blas_thread():
        ...                     # threads of our own, each with products of its own

Where several threads multiply at once, BLAS threads on top of them wait for each other in loops that occupy the cores;
and sums come out differently with their number.  numpy has no call for it.  Its wheels bring OpenBLAS, whose C function
is called here; another BLAS (Accelerate, MKL) is left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_PREFIXES, _SUFFIXES = ("scipy_openblas", "openblas"), ("64_", "")


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Products take one thread each, in the whole process, until the block ends."""
    library = _openblas()
    before = library.get() if library else 0
    if library:
        library.set(1)
    try:
        yield
    finally:
        if library:
            library.set(before)


def blas_threads() -> int | None:
    """Threads that a product may take; None where numpy's BLAS is no OpenBLAS."""
    library = _openblas()
    return library.get() if library else None


class _OpenBlas:
    """The two functions of ``cblas.h``."""

    def __init__(self, get: Any, set_: Any) -> None:
        self._get, self._set = get, set_
        self._get.restype, self._get.argtypes = ct.c_int, ()
        self._set.restype, self._set.argtypes = None, (ct.c_int,)

    def get(self) -> int:
        return int(self._get())

    def set(self, n: int) -> None:
        self._set(n)


@functools.cache
def _openblas() -> _OpenBlas | None:
    for path in _bundled():
        library = ct.CDLL(str(path))  # loaded already, by numpy: this finds it again
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                get, set_ = (f"{prefix}_{verb}_num_threads{suffix}" for verb in ("get", "set"))
                if hasattr(library, set_) and hasattr(library, get):
                    return _OpenBlas(getattr(library, get), getattr(library, set_))
    return None


def _bundled() -> list[Path]:
    """OpenBLAS in numpy's wheel: ``numpy.libs`` beside the package, ``.dylibs`` in it on macOS."""
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs")
    return sorted(path for folder in folders if folder.is_dir() for path in folder.glob("*openblas*"))
