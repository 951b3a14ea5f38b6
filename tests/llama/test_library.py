"""The self-check must accept the library it was written for and refuse any other layout."""

from __future__ import annotations

import ctypes as ct
from typing import Any

import pytest

from lamella.core.errors import LayoutMismatch, LibraryError
from lamella.core.precision import GGML_TYPES, GgmlType
from lamella.llama import api, library


def test_the_installed_library_has_the_known_layout() -> None:
    library.check_tensor_layout(library.load())


def test_the_type_table_is_the_librarys() -> None:
    library.check_type_table(library.load())


def _struct(fields: list[tuple[str, Any]]) -> type[ct.Structure]:
    return type("Other", (ct.Structure,), {"_fields_": fields})


def _swapped(first: str, second: str) -> type[ct.Structure]:
    fields: list[tuple[str, Any]] = [(f[0], f[1]) for f in api.Tensor._fields_]
    i, j = (next(n for n, f in enumerate(fields) if f[0] == name) for name in (first, second))
    fields[i], fields[j] = fields[j], fields[i]
    return _struct(fields)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ne", "nb"),
        ("data", "view_src"),
        ("name", "op_params"),
        ("type", "flags"),
        ("name", "extra"),
        ("buffer", "extra"),
        ("buffer", "data"),
        ("op", "flags"),
        ("src", "op_params"),
        ("view_src", "view_offs"),
    ],
)
def test_a_struct_with_two_fields_exchanged_is_refused(first: str, second: str) -> None:
    with pytest.raises(LayoutMismatch, match="live switch"):
        library.check_tensor_layout(library.load(), _swapped(first, second))


def test_a_struct_of_another_size_is_refused() -> None:
    fields: list[tuple[str, Any]] = [(f[0], f[1]) for f in api.Tensor._fields_]
    with pytest.raises(LayoutMismatch, match="size"):
        library.check_tensor_layout(library.load(), _struct([*fields, ("more", ct.c_int64)]))


def test_a_wrong_block_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GGML_TYPES, "Q4_0", GgmlType("Q4_0", 2, 32, 20))
    with pytest.raises(LayoutMismatch, match="Q4_0"):
        library.check_type_table(library.load())


def test_an_unknown_version_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "installed_version", lambda: "9.9.9")
    with pytest.raises(LibraryError, match=r"9\.9\.9.*pip install llama-cpp-python==0\.3\.36"):
        library.load.__wrapped__()


def test_llama_cpp_was_built_with_rpc() -> None:
    assert library.supports_rpc(), "build with CMAKE_ARGS=-DGGML_RPC=ON, as scripts/setup does"
