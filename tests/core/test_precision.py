"""The menu: which ggml type a row gets."""

from __future__ import annotations

import pytest

from lamella.core.errors import InvalidRequest, UnsupportedTensor
from lamella.core.precision import GGML_TYPES, MENU, Scheme, container, nominal_bits


@pytest.mark.parametrize(
    ("precision", "row_length", "expected"),
    [
        ("int8", 4096, "Q8_0"),
        ("INT4", 4096, "Q4_K"),
        ("int4", 576, "Q4_0"),  # 576 is no multiple of 256
        ("int5", 576, "Q5_0"),
        ("int6", 576, "Q8_0"),
        ("int2", 576, "Q4_0"),
        ("int4", 577, "F16"),
        ("fp16", 577, "F16"),
    ],
)
def test_the_first_type_that_the_row_length_allows(precision: str, row_length: int, expected: str) -> None:
    assert container(precision, row_length).name == expected


@pytest.mark.parametrize("precision", MENU)
@pytest.mark.parametrize("row_length", [1, 31, 32, 96, 256, 576, 4096])
def test_every_row_has_a_type_of_at_least_the_bits_that_were_asked(precision: str, row_length: int) -> None:
    found = container(precision, row_length)
    assert found.allows_row(row_length)
    assert found.bits_per_weight >= MENU[precision].bits


@pytest.mark.parametrize("scheme", ["channel", "truncate"])
def test_codes_of_one_scale_a_row_need_blocks(scheme: Scheme) -> None:
    assert container("int6", 576, scheme).name == "Q8_0"
    with pytest.raises(UnsupportedTensor, match=f"scheme {scheme} has no container for int8 rows of 577 weights"):
        container("int8", 577, scheme)


def test_a_type_by_its_own_name_is_taken_or_refused_but_never_replaced() -> None:
    assert container("q4_k", 512) is GGML_TYPES["Q4_K"]
    with pytest.raises(UnsupportedTensor, match="rows of 576 weights cannot be Q4_K, which needs multiples of 256"):
        container("Q4_K", 576)
    with pytest.raises(InvalidRequest, match="scheme channel takes a precision of the menu"):
        container("Q4_K", 512, "channel")


@pytest.mark.parametrize("ask", [lambda name: container(name, 256), nominal_bits])
def test_an_unknown_name_is_refused_with_the_menu(ask: object) -> None:
    with pytest.raises(InvalidRequest, match=r"unknown precision 'int7'; known: fp16, int8, .* or a ggml type"):
        ask("int7")  # type: ignore[operator]


def test_bits_are_those_of_the_papers_for_the_menu_and_of_the_blocks_for_types() -> None:
    assert [nominal_bits(name) for name in ("fp16", "Int4", "int2")] == [16, 4, 2]
    assert nominal_bits("q4_k") == 4.5
    assert nominal_bits("Q8_0") == 8.5


def test_rows_take_whole_blocks() -> None:
    assert GGML_TYPES["Q4_0"].row_bytes(576) == 18 * 18
    assert GGML_TYPES["Q6_K"].row_bytes(512) == 2 * 210
    assert [GGML_TYPES[name].input_block for name in ("F16", "Q4_0", "NVFP4", "Q4_K")] == [0, 32, 32, 256]
