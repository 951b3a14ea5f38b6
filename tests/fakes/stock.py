"""llama-quantize's own code, through the library: files as other tools make them."""

from __future__ import annotations

from pathlib import Path

import llama_cpp


def stock_quantize(source: Path, target: Path, file_type: str) -> Path:
    """``llama-quantize SOURCE TARGET Q4_K_M``; returns ``target``."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    params.nthread = 1
    params.allow_requantize = True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target
