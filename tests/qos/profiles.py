"""Profiles made up for tests: a ladder whose lower rungs are faster, smaller and worse."""

from __future__ import annotations

from lamella.core.model import ModelIdentity
from lamella.qos.profiles.documents import (
    EngineShape,
    Machine,
    MixedPoint,
    Profile,
    PromptPoint,
    Quality,
    StepPoint,
    VariantProfile,
)

MEBI = 1 << 20
SHAPE = EngineShape(n_sequences=8, n_batch=512, n_ctx=4096, kv_type="F16", layout="auto")


def true_step(n: float, depth: float, slowness: float = 1.0) -> float:
    return slowness * (0.018 + 0.003 * n + 2e-6 * n * depth)


def true_chunk(m: int, depth: float, slowness: float = 1.0) -> float:
    return slowness * (0.018 + 0.0012 * m + 2e-6 * m * depth)


def true_mixed(n: int, depth: float, m: int, slowness: float = 1.0) -> float:
    return true_step(n, depth, slowness) + true_chunk(m, 0, slowness) - slowness * 0.018


def variant(
    name: str, slowness: float = 1.0, kl: float | None = 0.0, memory: int = 500 * MEBI, joules: float | None = None
) -> VariantProfile:
    """A variant whose times follow the two functions above."""
    return VariantProfile(
        name=name,
        content=name,
        n_bytes=memory,
        bits_per_weight=8.0,
        load_seconds=2.0,
        prepare_seconds=0.2,
        switch_seconds=0.002,
        memory_bytes=memory,
        prompt=tuple(PromptPoint(m, true_chunk(m, 0, slowness)) for m in (16, 64, 256, 512)),
        steps=(
            *(StepPoint(n, 64.0, true_step(n, 64, slowness)) for n in (1, 2, 4, 8)),
            StepPoint(8, 1024.0, true_step(8, 1024, slowness)),
        ),
        mixed=(MixedPoint(4, 64.0, 64, 1, true_mixed(4, 64, 64, slowness)),),
        joules_per_token=joules,
        joules_per_prompt_token=None if joules is None else joules / 10,
        quality=Quality(kl=kl),
    )


def ladder(n: int = 4, *, joules: float | None = None) -> Profile:
    """Rungs ``v0`` (best, slowest) to ``v(n-1)``."""
    variants = tuple(
        variant(
            f"v{i}",
            slowness=0.75**i,
            kl=0.02 * (2**i - 1),
            memory=(500 - 70 * i) * MEBI,
            joules=None if joules is None else joules * 0.75**i,
        )
        for i in range(n)
    )
    return profile(*variants, idle_watts=None if joules is None else 5.0)


def profile(*variants: VariantProfile, idle_watts: float | None = None) -> Profile:
    return Profile(
        model=ModelIdentity("tiny", "llama", "s", "w"),
        machine=Machine("a processor", 2, "0.3.36"),
        engine=SHAPE,
        variants=variants,
        idle_watts=idle_watts,
    )
