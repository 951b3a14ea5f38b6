"""numpy's BLAS takes one thread where ours are many, and its own number again afterwards."""

from __future__ import annotations

import contextlib

import pytest

from lamella.llama.blas import blas_threads, one_blas_thread


@pytest.mark.skipif(blas_threads() is None, reason="numpy's BLAS is no OpenBLAS")
def test_products_take_one_thread_within_and_as_many_as_before_afterwards() -> None:
    before = blas_threads()
    with one_blas_thread():
        assert blas_threads() == 1
    assert blas_threads() == before


@pytest.mark.skipif(blas_threads() is None, reason="numpy's BLAS is no OpenBLAS")
def test_an_error_gives_the_threads_back() -> None:
    before = blas_threads()
    with contextlib.suppress(KeyError), one_blas_thread():
        raise KeyError
    assert blas_threads() == before
