"""The menu: precisions by name, the ggml types behind them, and which of them a row length allows.

A *precision* is what people ask for (``int4``); a *ggml type* is what a file holds (``Q4_K``).  Between
the two stands the row length of the tensor: K-quants store rows in blocks of 256 weights and the
``_0``/``_1`` types in blocks of 32, so a row of 576 weights cannot be ``Q4_K`` and becomes ``Q4_0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lamella.core.errors import InvalidRequest, UnsupportedTensor

Scheme = Literal["block", "channel", "truncate"]
"""How values are rounded: as ggml's types do it, in blocks; to one scale a row (LSAQ eq. 4); or to the top bits of such
an 8-bit code (DILEMMA)."""
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A storage format of ggml (``enum ggml_type`` and ``type_traits`` of ggml.c).

    Attributes:
        name: as llama.cpp prints it, in capitals.
        code: the value of ``enum ggml_type``.
        block_weights: weights in one block; rows must be a multiple of it.
        block_bytes: bytes of one block.
        writable: whether ``ggml_quantize_chunk`` writes it without an importance matrix.  A plan may name other types;
            building it then takes a matrix.
    """

    name: str
    code: int
    block_weights: int
    block_bytes: int
    writable: bool = True

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_weights

    @property
    def input_block(self) -> int:
        """Block length in which ggml's CPU code rounds what such a weight is multiplied by; 0 where it does not.

        ``vec_dot_type`` in ggml-cpu.c: Q8_K for types with blocks of 256, Q8_0 or Q8_1 for other blocks.
        """
        if self.block_weights == 1:
            return 0
        return 256 if self.block_weights == 256 else 32

    def allows_row(self, row_length: int) -> bool:
        return row_length % self.block_weights == 0

    def row_bytes(self, row_length: int) -> int:
        """Bytes of one row of ``row_length`` weights (``ggml_row_size``)."""
        if not self.allows_row(row_length):
            raise UnsupportedTensor(
                f"rows of {row_length} weights cannot be {self.name}, which needs multiples of {self.block_weights}"
            )
        return row_length // self.block_weights * self.block_bytes


_TYPES = (
    GgmlType("F32", 0, 1, 4),
    GgmlType("F16", 1, 1, 2),
    GgmlType("BF16", 30, 1, 2),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q2_K", 10, 256, 84),
    GgmlType("Q3_K", 11, 256, 110),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("IQ2_XXS", 16, 256, 66, writable=False),
    GgmlType("IQ2_XS", 17, 256, 74, writable=False),
    GgmlType("IQ3_XXS", 18, 256, 98),
    GgmlType("IQ1_S", 19, 256, 50, writable=False),
    GgmlType("IQ4_NL", 20, 32, 18),
    GgmlType("IQ3_S", 21, 256, 110),
    GgmlType("IQ2_S", 22, 256, 82),
    GgmlType("IQ4_XS", 23, 256, 136),
    GgmlType("IQ1_M", 29, 256, 56, writable=False),
    GgmlType("TQ1_0", 34, 256, 54),
    GgmlType("TQ2_0", 35, 256, 66),
    GgmlType("MXFP4", 39, 32, 17),
    GgmlType("NVFP4", 40, 64, 36),
    GgmlType("Q1_0", 41, 128, 18),
    GgmlType("Q2_0", 42, 64, 18),
)
GGML_TYPES: dict[str, GgmlType] = {t.name: t for t in _TYPES}
GGML_TYPES_BY_CODE: dict[int, GgmlType] = {t.code: t for t in _TYPES}
CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
"""That llama.cpp writes a KV cache in."""


@dataclass(frozen=True, slots=True)
class Precision:
    """One entry of the menu.

    Attributes:
        name: what people write.
        bits: what the papers call it; averages of this are "average bits".
        block: types for the ``block`` scheme, best first; the first that the row length allows is taken.
        channel: containers for one scale a row (schemes ``channel`` and ``truncate``), smallest first.
    """

    name: str
    bits: int
    block: tuple[str, ...]
    channel: tuple[str, ...] = ()


_MENU = (
    Precision("fp16", 16, ("F16",), ("F16",)),
    Precision("int8", 8, ("Q8_0", "F16"), ("Q8_0",)),
    Precision("int6", 6, ("Q6_K", "Q8_0", "F16"), ("Q6_K", "Q8_0")),
    Precision("int5", 5, ("Q5_K", "Q5_0", "F16"), ("Q5_0",)),
    Precision("int4", 4, ("Q4_K", "Q4_0", "F16"), ("Q4_0",)),
    Precision("int3", 3, ("Q3_K", "Q4_0", "F16"), ("Q3_K", "Q4_0")),
    Precision("int2", 2, ("Q2_K", "Q4_0", "F16"), ("Q2_K", "Q4_0")),
)
MENU: dict[str, Precision] = {p.name: p for p in _MENU}


def container(precision: str, row_length: int, scheme: Scheme = "block") -> GgmlType:
    """The ggml type that holds ``precision`` (a menu name or a ggml type name) in rows of ``row_length`` weights.

    Where the row length allows no type of that many bits, the next larger one is taken, as
    llama-quantize does; rows that fit no block at all (odd lengths) stay F16.

    Raises:
        InvalidRequest: no such precision, or a ggml type for a scheme other than ``block``.
        UnsupportedTensor: a ggml type was named and the row length does not allow it, or the scheme has no
            container for such rows.
    """
    asked = MENU.get(precision.lower())
    if asked is None:
        return _named_type(precision, row_length, scheme)
    names = asked.block if scheme == "block" else asked.channel
    for name in names:
        if GGML_TYPES[name].allows_row(row_length):
            return GGML_TYPES[name]
    raise UnsupportedTensor(f"scheme {scheme} has no container for {precision} rows of {row_length} weights")


def _named_type(name: str, row_length: int, scheme: Scheme) -> GgmlType:
    found = GGML_TYPES.get(name.upper())
    if found is None:
        raise InvalidRequest(f"unknown precision '{name}'; known: {', '.join(MENU)} or a ggml type such as Q5_K")
    if scheme != "block":
        raise InvalidRequest(f"scheme {scheme} takes a precision of the menu ({', '.join(MENU)}), not the type {name}")
    found.row_bytes(row_length)  # raises UnsupportedTensor with the facts
    return found


def nominal_bits(precision: str) -> float:
    """Bits of a precision as the papers count them (int4 is 4), or bits per weight of a ggml type."""
    if precision.lower() in MENU:
        return MENU[precision.lower()].bits
    if precision.upper() in GGML_TYPES:
        return GGML_TYPES[precision.upper()].bits_per_weight
    raise InvalidRequest(f"unknown precision '{precision}'; known: {', '.join(MENU)} or a ggml type such as Q5_K")
