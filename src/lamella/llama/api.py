"""Declarations that llama-cpp-python lacks: ``ggml_tensor`` and the ggml and gguf calls that Lamella makes.

Signatures follow the headers of llama.cpp 0c1e570 (ggml 0.25.3), shipped in the llama-cpp-python 0.3.36 sdist under
``vendor/llama.cpp/ggml/include``.  Nothing here is called before ``library.load()`` has checked version and layout.
"""

from __future__ import annotations

import ctypes as ct
from typing import Any

MAX_DIMS = 4
BUFFER_USAGE_WEIGHTS = 1  # enum ggml_backend_buffer_usage
GGUF_TYPE_ARRAY, GGUF_TYPE_STRING = 9, 8  # enum gguf_type

POINTER, SIZE, INT, INT64 = ct.c_void_p, ct.c_size_t, ct.c_int, ct.c_int64
CHARS = ct.c_char_p


class Tensor(ct.Structure):
    """``struct ggml_tensor`` (ggml.h).  ``library.load()`` proves that the loaded library lays it out like this."""

    _fields_ = [
        ("type", ct.c_int),
        ("buffer", ct.c_void_p),
        ("ne", ct.c_int64 * MAX_DIMS),
        ("nb", ct.c_size_t * MAX_DIMS),
        ("op", ct.c_int),
        ("op_params", ct.c_int32 * 16),
        ("flags", ct.c_int32),
        ("src", ct.c_void_p * 10),
        ("view_src", ct.c_void_p),
        ("view_offs", ct.c_size_t),
        ("data", ct.c_void_p),
        ("name", ct.c_char * 64),
        ("extra", ct.c_void_p),
        ("padding", ct.c_char * 8),
    ]


def tensor_at(address: int) -> Any:
    """The ``ggml_tensor`` at an address, as a live struct: writing its fields writes C memory."""
    return ct.cast(address, ct.POINTER(Tensor)).contents


class TypeTraits(ct.Structure):
    """``struct ggml_type_traits`` (ggml.h)."""

    _fields_ = [
        ("type_name", ct.c_char_p),
        ("blck_size", ct.c_int64),
        ("blck_size_interleave", ct.c_int64),
        ("type_size", ct.c_size_t),
        ("is_quantized", ct.c_bool),
        ("to_float", ct.CFUNCTYPE(None, ct.c_void_p, ct.c_void_p, ct.c_int64)),
        ("from_float_ref", ct.c_void_p),
    ]


class InitParams(ct.Structure):
    """``struct ggml_init_params`` (ggml.h)."""

    _fields_ = [("mem_size", ct.c_size_t), ("mem_buffer", ct.c_void_p), ("no_alloc", ct.c_bool)]


class GgufInitParams(ct.Structure):
    """``struct gguf_init_params`` (gguf.h)."""

    _fields_ = [("no_alloc", ct.c_bool), ("ctx", ct.c_void_p)]


class BufferTypeOverride(ct.Structure):
    """``struct llama_model_tensor_buft_override`` (llama.h): weights whose names match go to buffers of a type."""

    _fields_ = [("pattern", ct.c_char_p), ("buffer_type", ct.c_void_p)]


GET_EXTRA_BUFTS = ct.CFUNCTYPE(ct.POINTER(ct.c_void_p), ct.c_void_p)  # ggml_backend_dev_get_extra_bufts_t

# name -> (result, arguments); in libggml-base
BASE_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "ggml_version": (CHARS, ()),
    "ggml_commit": (CHARS, ()),
    "ggml_init": (POINTER, (InitParams,)),
    "ggml_free": (None, (POINTER,)),
    "ggml_tensor_overhead": (SIZE, ()),
    "ggml_new_tensor": (POINTER, (POINTER, INT, INT, ct.POINTER(INT64))),
    "ggml_set_name": (POINTER, (POINTER, CHARS)),
    "ggml_get_name": (CHARS, (POINTER,)),
    "ggml_op_name": (CHARS, (INT,)),
    "ggml_get_data": (POINTER, (POINTER,)),
    "ggml_nbytes": (SIZE, (POINTER,)),
    "ggml_type_name": (CHARS, (INT,)),
    "ggml_type_size": (SIZE, (INT,)),
    "ggml_blck_size": (INT64, (INT,)),
    "ggml_row_size": (SIZE, (INT, INT64)),
    "ggml_get_type_traits": (ct.POINTER(TypeTraits), (INT,)),
    "ggml_quantize_init": (None, (INT,)),
    "ggml_quantize_chunk": (SIZE, (INT, POINTER, POINTER, INT64, INT64, INT64, POINTER)),
    "ggml_quantize_requires_imatrix": (ct.c_bool, (INT,)),
    "ggml_validate_row_data": (ct.c_bool, (INT, POINTER, SIZE)),
    "ggml_backend_dev_name": (CHARS, (POINTER,)),
    "ggml_backend_dev_description": (CHARS, (POINTER,)),
    "ggml_backend_dev_memory": (None, (POINTER, ct.POINTER(SIZE), ct.POINTER(SIZE))),
    "ggml_backend_dev_type": (INT, (POINTER,)),
    "ggml_backend_dev_backend_reg": (POINTER, (POINTER,)),
    "ggml_backend_reg_name": (CHARS, (POINTER,)),
    "ggml_backend_reg_get_proc_address": (POINTER, (POINTER, CHARS)),
    "ggml_backend_dev_buffer_type": (POINTER, (POINTER,)),
    "ggml_backend_dev_buffer_from_host_ptr": (POINTER, (POINTER, POINTER, SIZE, SIZE)),
    "ggml_backend_buft_alloc_buffer": (POINTER, (POINTER, SIZE)),
    "ggml_backend_buft_name": (CHARS, (POINTER,)),
    "ggml_backend_buft_get_alloc_size": (SIZE, (POINTER, POINTER)),
    "ggml_backend_buft_get_alignment": (SIZE, (POINTER,)),
    "ggml_backend_buft_is_host": (ct.c_bool, (POINTER,)),
    "ggml_backend_buffer_get_base": (POINTER, (POINTER,)),
    "ggml_backend_buffer_get_size": (SIZE, (POINTER,)),
    "ggml_backend_buffer_get_type": (POINTER, (POINTER,)),
    "ggml_backend_buffer_set_usage": (None, (POINTER, INT)),
    "ggml_backend_buffer_free": (None, (POINTER,)),
    "ggml_backend_tensor_alloc": (INT, (POINTER, POINTER, POINTER)),
    "ggml_backend_tensor_set": (None, (POINTER, POINTER, SIZE, SIZE)),
    "ggml_backend_tensor_get": (None, (POINTER, POINTER, SIZE, SIZE)),
    "ggml_view_tensor": (POINTER, (POINTER, POINTER)),
    "ggml_mul_mat": (POINTER, (POINTER, POINTER, POINTER)),
    "ggml_flash_attn_ext": (POINTER, (*[POINTER] * 5, ct.c_float, ct.c_float, ct.c_float)),
    "ggml_new_graph": (POINTER, (POINTER,)),
    "ggml_build_forward_expand": (None, (POINTER, POINTER)),
    "ggml_backend_dev_init": (POINTER, (POINTER, CHARS)),
    "ggml_backend_free": (None, (POINTER,)),
    "ggml_backend_graph_compute": (INT, (POINTER, POINTER)),
    "ggml_backend_alloc_ctx_tensors": (POINTER, (POINTER, POINTER)),
    "gguf_init_empty": (POINTER, ()),
    "gguf_init_from_file": (POINTER, (CHARS, GgufInitParams)),
    "gguf_free": (None, (POINTER,)),
    "gguf_get_data_offset": (SIZE, (POINTER,)),
    "gguf_get_n_kv": (INT64, (POINTER,)),
    "gguf_find_key": (INT64, (POINTER, CHARS)),
    "gguf_get_key": (CHARS, (POINTER, INT64)),
    "gguf_get_kv_type": (INT, (POINTER, INT64)),
    "gguf_get_arr_type": (INT, (POINTER, INT64)),
    "gguf_get_arr_n": (SIZE, (POINTER, INT64)),
    "gguf_get_arr_data": (POINTER, (POINTER, INT64)),
    "gguf_get_arr_str": (CHARS, (POINTER, INT64, SIZE)),
    "gguf_get_val_data": (POINTER, (POINTER, INT64)),
    "gguf_get_val_str": (CHARS, (POINTER, INT64)),
    "gguf_get_n_tensors": (INT64, (POINTER,)),
    "gguf_get_tensor_offset": (SIZE, (POINTER, INT64)),
    "gguf_get_tensor_name": (CHARS, (POINTER, INT64)),
    "gguf_get_tensor_ne": (ct.POINTER(INT64), (POINTER, INT64)),
    "gguf_get_tensor_type": (INT, (POINTER, INT64)),
    "gguf_get_tensor_size": (SIZE, (POINTER, INT64)),
    "gguf_remove_key": (INT64, (POINTER, CHARS)),
    "gguf_set_val_u16": (None, (POINTER, CHARS, ct.c_uint16)),
    "gguf_set_val_u32": (None, (POINTER, CHARS, ct.c_uint32)),
    "gguf_set_val_i32": (None, (POINTER, CHARS, ct.c_int32)),
    "gguf_set_val_f32": (None, (POINTER, CHARS, ct.c_float)),
    "gguf_set_val_str": (None, (POINTER, CHARS, CHARS)),
    "gguf_set_arr_str": (None, (POINTER, CHARS, ct.POINTER(CHARS), SIZE)),
    "gguf_set_kv": (None, (POINTER, POINTER)),
    "gguf_add_tensor": (None, (POINTER, POINTER)),
    "gguf_get_meta_size": (SIZE, (POINTER,)),
    "gguf_get_meta_data": (None, (POINTER, POINTER)),
}

# in libggml
GGML_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "ggml_backend_register": (None, (POINTER,)),
    "ggml_backend_dev_by_name": (POINTER, (CHARS,)),
    "ggml_backend_dev_count": (SIZE, ()),
    "ggml_backend_dev_get": (POINTER, (SIZE,)),
    "ggml_backend_dev_by_type": (POINTER, (INT,)),
}

# in libggml-rpc
RPC_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "ggml_backend_rpc_add_server": (POINTER, (CHARS,)),
    "ggml_backend_rpc_start_server": (None, (CHARS, CHARS, SIZE, SIZE, ct.POINTER(POINTER))),
}
