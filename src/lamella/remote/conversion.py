"""Safetensors to GGUF, with llama.cpp's own script.

It is not part of any package: a checkout of llama.cpp has it (``LAMELLA_LLAMA_CPP``), and it needs torch (extra
``convert``).  It runs in a process of its own, so nothing of it is imported here.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import InvalidRequest, ModelError

SCRIPT = "convert_hf_to_gguf.py"
_NEEDED = ("torch", "transformers", "sentencepiece")


@dataclass(frozen=True, slots=True)
class Converter:
    """llama.cpp's script.

    Attributes:
        checkout: folder of llama.cpp's sources; None if nobody said where it is.
    """

    checkout: Path | None

    def check(self) -> None:
        """Say before anything is fetched that converting cannot work.

        Raises:
            InvalidRequest: no checkout, no script in it, or no torch.
        """
        if self.checkout is None:
            raise InvalidRequest(
                f"the repository has safetensors and no GGUF; converting takes llama.cpp's {SCRIPT}: "
                "set LAMELLA_LLAMA_CPP to a checkout of llama.cpp, or choose a repository with GGUF files"
            )
        if not (self.checkout / SCRIPT).is_file():
            raise InvalidRequest(f"LAMELLA_LLAMA_CPP={self.checkout} is no checkout of llama.cpp: it has no {SCRIPT}")
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise InvalidRequest(f"converting needs {', '.join(missing)}: pip install 'lamella[convert]'")

    def command(self, folder: Path, target: Path) -> list[str]:
        """What is run: the highest fidelity of 16 bits that the weights have, into ``target``."""
        script = str((self.checkout or Path()) / SCRIPT)
        return [sys.executable, script, str(folder), "--outfile", str(target), "--outtype", "auto"]

    def convert(self, folder: Path, name: str) -> Path:
        """Make ``NAME.gguf`` of the safetensors in a folder; the script's own output goes to the error stream.

        Raises:
            ModelError: the script failed; no half-made file stays.
        """
        target, unfinished = folder / f"{name}.gguf", folder / f".{name}.part.gguf"
        try:
            result = subprocess.run(self.command(folder, unfinished), stdout=sys.stderr, check=False)
            if result.returncode:
                raise ModelError(f"{SCRIPT} could not convert {folder}: it ended with exit code {result.returncode}")
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        return target
