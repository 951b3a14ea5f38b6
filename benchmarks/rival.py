"""The rival: llama.cpp's own tools, built from the sources of the very llama-cpp-python that Lamella uses.

Same sources, same compiler, native flags: both sides share kernels, and a difference is ours.  The build is kept in the
cache folder (about 6 minutes, once).

One kernel is left out: that for AMX, which Lamella does not use and which dies of an illegal instruction where gcc has
dropped most of its tile configuration (llama.cpp pull request 26954; gcc 12 does).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from lamella.llama.library import installed_version

TOOLS = ("llama-bench", "llama-quantize", "llama-completion", "llama-server", "llama-perplexity", "llama-imatrix")


def tool(name: str) -> Path:
    """Path of one of llama.cpp's tools; builds them all the first time.

    ``LAMELLA_RIVAL`` may name a folder that has them already.
    """
    folder = Path(os.environ.get("LAMELLA_RIVAL") or _cache() / f"llama.cpp-{installed_version()}" / "bin")
    if not (folder / name).exists():
        _build(folder.parent)
    return folder / name


def bench(model: Path, *, n_prompt: int, n_generate: int, n_threads: int) -> dict[str, float]:
    """One round of llama-bench: ``prompt`` and ``generate`` in tokens per second (0 where not asked)."""
    command = [
        tool("llama-bench"),
        "-m",
        model,
        "-p",
        n_prompt,
        "-n",
        n_generate,
        "-t",
        n_threads,
        "-r",
        1,
        "-o",
        "json",
    ]
    rows = json.loads(_run(command))
    speeds = {"prompt" if row["n_gen"] == 0 else "generate": float(row["avg_ts"]) for row in rows}
    return {"prompt": 0.0, "generate": 0.0, **speeds}


def quantize(source: Path, target: Path, mix: str, n_threads: int, *options: str) -> float:
    """Seconds that llama-quantize takes for one file."""
    start = time.perf_counter()
    _run([tool("llama-quantize"), *options, source, target, mix, n_threads])
    return time.perf_counter() - start


def _run(command: list[Any]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _build(folder: Path) -> None:
    version = installed_version()
    print(f"building llama.cpp's tools of llama-cpp-python {version} in {folder}; some minutes, once", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", folder]
    _run([*pip, f"llama-cpp-python=={version}"])
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    sources = folder / f"llama_cpp_python-{version}" / "vendor" / "llama.cpp"
    flags = "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_RPC=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF"
    flags += " -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DCMAKE_CXX_FLAGS=-U__AMX_INT8__"  # see the top
    _run(["cmake", "-S", sources, "-B", folder, *flags.split()])
    _run(["cmake", "--build", folder, "-j", os.cpu_count() or 1, "--target", *TOOLS])


def _cache() -> Path:
    return Path(os.environ.get("LAMELLA_CACHE") or Path.home() / ".cache" / "lamella")
