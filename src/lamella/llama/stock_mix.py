"""Which ggml type llama-quantize would give each tensor, from llama.cpp itself: a dry run that quantizes nothing.

    stock_types([Path("model.gguf")], "Q4_K_M")["blk.0.attn_v.weight"]      # "Q6_K"

A mix is a set of rules in llama.cpp (llama-quant.cpp: ``llama_tensor_get_type``) that look at architecture, layer, row
length and whether there is an importance matrix.  ``llama_model_quantize`` with ``dry_run`` applies them, reads the
model's header alone, writes no file, and says the result in its log, so it is read from there.
"""

from __future__ import annotations

import ctypes as ct
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.core.precision import GGML_TYPES
from lamella.llama import library, log

MIXES: Mapping[str, int] = {
    "Q1_0": 40, "Q2_0": 41, "Q4_0": 2, "Q4_1": 3, "MXFP4_MOE": 38, "Q5_0": 8, "Q5_1": 9,
    "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28, "IQ2_M": 29, "IQ1_S": 24, "IQ1_M": 31, "TQ1_0": 36, "TQ2_0": 37,
    "Q2_K": 10, "Q2_K_S": 21, "IQ3_XXS": 23, "IQ3_S": 26, "IQ3_M": 27, "IQ3_XS": 22,
    "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "IQ4_NL": 25, "IQ4_XS": 30, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7, "F16": 1, "BF16": 32, "F32": 0,
}  # fmt: skip
"""Name -> ``enum llama_ftype``, as llama-quantize lists them (tools/quantize/quantize.cpp: ``QUANT_OPTIONS``)."""

ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_TENSOR = re.compile(
    r"\[ *(\d+)/ *(\d+)\] (\S+) +- \[[^\]]*\], type = +(\w+), "
    r"size = +[0-9.]+ MiB(?: -> +[0-9.]+ MiB \((\w+)\))?"
)
_NEEDS_IMPORTANCE = "will require an imatrix"


def canonical_mix(name: str) -> str:
    """A mix as llama-quantize writes it, whatever case it was given in; its short names are resolved.

    Raises:
        InvalidRequest: llama-quantize knows no such mix; lists those that it knows.
    """
    upper = name.upper()
    mix = ALIASES.get(upper, upper)
    if mix not in MIXES:
        raise InvalidRequest(f"unknown mix '{name}'; llama-quantize knows {', '.join(MIXES)}")
    return mix


def stock_types(paths: Sequence[Path], mix: str, *, with_importance: bool = False) -> dict[str, str]:
    """What ``llama-quantize [--imatrix FILE] MODEL MIX`` would make of each tensor.

    Args:
        paths: the model file, or all parts of a split one in order.
        with_importance: as if an importance matrix was given; its values decide no type.

    Returns:
        Tensor name -> ggml type, for every tensor of the model.

    Raises:
        InvalidRequest: no such mix, or one that llama-quantize refuses to make without an importance matrix.
        EngineFailed: llama.cpp cannot read the model, knows no rule for a tensor, or does not say the types.
    """
    mix = canonical_mix(mix)
    llama = library.load().llama
    params = llama.llama_model_quantize_default_params()
    params.dry_run, params.ftype = True, MIXES[mix]
    if with_importance:
        params.imatrix = _any_importance(llama)
    log.forget_complaints()
    with log.listening() as lines:
        failed = llama.llama_model_quantize(os.fsencode(paths[0]), b"", ct.byref(params))
    if failed:
        raise EngineFailed(f"llama.cpp cannot quantize {paths[0]} as {mix}: {log.complaints()}")
    log.forget_complaints()  # it warns of each tensor whose rows ask for another type
    if any(_NEEDS_IMPORTANCE in line for line in lines):
        raise InvalidRequest(
            f"llama-quantize makes no {mix} of this model without an importance matrix: "
            "give one to lamella plan and to lamella build with --imatrix FILE"
        )
    return parse_log(lines)


def parse_log(lines: Iterable[str]) -> dict[str, str]:
    """Read the types from what llama.cpp logged during a dry run; a tensor's line comes in two pieces.

    Raises:
        EngineFailed: not one line for each tensor that the numbering promises, or a type that Lamella does not know.
    """
    found = _TENSOR.findall("".join(lines))
    numbers = [int(number) for number, *_ in found]
    if not found or numbers != list(range(1, int(found[0][1]) + 1)):
        raise EngineFailed("llama.cpp did not log the type of every tensor in the dry run of a quantization")
    types = {name: (target or stored).upper() for _, _, name, stored, target in found}
    unknown = [(name, kind) for name, kind in types.items() if kind not in GGML_TYPES]
    if unknown:
        raise EngineFailed(f"llama.cpp would make tensor {unknown[0][0]} {unknown[0][1]}, which Lamella does not know")
    return types


def _any_importance(llama: Any) -> Any:
    """A matrix for a tensor that does not exist, ended by a null name.  A dry run looks at no value of it.

    The array must live until the call returns; ctypes keeps it through the struct's pointer.
    """
    value = (ct.c_float * 1)(1.0)
    entries = (llama.llama_model_imatrix_data * 2)()
    entries[0].name, entries[0].data, entries[0].size = b"none", ct.cast(value, type(entries[0].data)), 1
    return entries
