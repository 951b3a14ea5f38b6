"""Logits of a token that do not depend on what else llama.cpp computes in the same pass.

On the CPU three things make them depend on it, and with them which token is the likeliest:

* products with K-quants take another way from 8 rows on (``ggml_compute_forward_mul_mat_tiled``); an environment
  variable switches it off,
* repacked weights are multiplied four rows at a time, what is left over row by row; mapped ones are not,
* flash attention takes tiles from 64 queries on, and splits the cells of a lone query between threads, both only where
  keys and values have the same type, F32 or F16 (``ggml_compute_forward_flash_attn_ext_f16``); BF16 values avoid it.

What is left computes each row by itself.  Sequences need cells of their own too: sums go over cells in the order in
which they lie.  Found by trying: bit for bit equal logits for pieces of 1 to 100 tokens, alone and among other
sequences, for Q8_0, Q6_K, Q4_K and Q4_0 (docs/log.md).
"""

from __future__ import annotations

import os

from lamella.core.precision import GGML_TYPES

TILED_PRODUCTS = "GGML_CPU_TILED_MM"
"""llama.cpp's environment variable.  Processes started by this one inherit it: a test, after which others run, takes it
back."""


def use_plain_products() -> None:
    """Products row by row, in this process; before the first one, for llama.cpp looks once."""
    os.environ[TILED_PRODUCTS] = "0"


def value_type(key_type: str) -> str:
    """The ggml type of cached values beside keys of ``key_type`` with which attention goes row by row."""
    return "BF16" if GGML_TYPES[key_type.upper()].name in ("F16", "F32") else key_type
