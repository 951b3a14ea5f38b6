"""One variant's profile, measured with the real engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import msgspec

from lamella.batching.settings import EngineSettings
from lamella.core.artifacts import Variant
from lamella.llama.openmp import release_team
from lamella.llama.pages import trim_heap
from lamella.qos.profiles.documents import (
    MixedPoint,
    PromptPoint,
    Quality,
    StepPoint,
    VariantProfile,
    content_of,
)
from lamella.qos.profiling.bench import Bench
from lamella.qos.profiling.energy import EnergyMeter
from lamella.qos.profiling.points import Points
from lamella.qos.profiling.quiet import Quiet
from lamella.qos.profiling.shape import shape_of

T = TypeVar("T")
LONG_SECONDS = 3.0
"""A point that took so long is not measured again."""
OnPoint = Callable[[int, int, str], None]
"""(points done, of how many, what is measured)."""


@dataclass(frozen=True, slots=True)
class _Joules:
    """Above idle: of a token written and of one read."""

    written: float | None
    read: float | None


def measure_variant(
    variant: Variant,
    settings: EngineSettings,
    points: Points,
    quality: Quality,
    *,
    other: str | None,
    meter: EnergyMeter,
    idle_watts: float | None,
    on_point: OnPoint = lambda _done, _total, _what: None,
    quiet: Quiet | None = None,
) -> VariantProfile:
    """Measure one variant in an engine of its own.

    Args:
        settings: of the engine; its first variant is replaced by this one.
        quality: what is known of its answers.
        other: a variant to switch from; None: changes cost nothing that could be measured.
        idle_watts: of the machine; None where energy is not counted.
        quiet: repeats what others disturb; None for the usual one.

    Raises:
        LamellaError: the variant cannot be run.
    """
    points = points.within(shape_of(settings))
    # no prompt is asked for twice, and what is kept of earlier ones would count as memory that the variant needs
    own = msgspec.structs.replace(settings, variant=variant.name, n_warm=1, prompt_cache_bytes=0)
    trim_heap()  # what the variant before has left would count as this one's
    release_team()  # who asks may have computed before, and the threads of that would slow down the bench's
    with Bench.open(own) as bench:
        quiet = quiet or Quiet()
        run = _Run(bench, points, on_point, quiet)
        bench.prompt_seconds(points.prompts[0])  # the first decode of an engine sets up what later ones have
        prompt = run.prompts()
        trim_heap()
        memory_bytes = bench.memory_bytes
        steps, mixed = run.steps(), run.mixed()
        joules = _measure_joules(bench, points, meter, idle_watts)
        prepare, stall = _switch_cost(bench, variant.name, other)
        return VariantProfile(
            name=variant.name,
            content=content_of(variant),
            n_bytes=variant.n_bytes,
            bits_per_weight=variant.plan.bits_per_weight,
            load_seconds=bench.load_seconds,
            prepare_seconds=prepare,
            switch_seconds=stall,
            memory_bytes=memory_bytes,
            prompt=prompt,
            steps=steps,
            mixed=mixed,
            joules_per_token=joules.written,
            joules_per_prompt_token=joules.read,
            quality=quality,
            others_share=round(quiet.most_others, 4),
        )


class _Run:
    """The points of one variant, one after another."""

    def __init__(self, bench: Bench, points: Points, on_point: OnPoint, quiet: Quiet) -> None:
        self._bench, self._points, self._on_point, self._quiet = bench, points, on_point, quiet
        self._n_deep = 2 if len(points.sequences) > 1 else 1
        self._n_all = len(points.prompts) + len(points.sequences) + self._n_deep + len(points.mixed)
        self._n_done = 0

    def prompts(self) -> tuple[PromptPoint, ...]:
        return tuple(
            PromptPoint(n, self._median(lambda n=n: self._bench.prompt_seconds(n), f"a prompt of {n} tokens"))  # type: ignore[misc]
            for n in self._points.prompts
        )

    def steps(self) -> tuple[StepPoint, ...]:
        """All batches at one depth, the smallest and the largest also deep."""
        batches = self._points.sequences
        wanted = [(n, self._points.shallow) for n in batches]
        wanted += [(n, self._points.deep) for n in sorted({batches[0], batches[-1]})]
        return tuple(self._step(n, depth) for n, depth in wanted)

    def mixed(self) -> tuple[MixedPoint, ...]:
        return tuple(self._mixed(n, m) for n, m in self._points.mixed)

    def _step(self, n: int, depth: int) -> StepPoint:
        self._tick(f"{n} streams, {depth} tokens deep")
        seconds = self._quiet.measure(lambda: self._bench.step_seconds(n, depth, self._points.n_steps))
        return StepPoint(n, float(depth), seconds)

    def _mixed(self, n: int, n_prompt: int) -> MixedPoint:
        self._tick(f"{n} streams and a prompt of {n_prompt} tokens")
        shallow = self._points.shallow
        found = sorted(self._repeated(lambda: self._bench.mixed_seconds(n, shallow, n_prompt)))
        seconds, n_steps = found[len(found) // 2]
        return MixedPoint(n, float(shallow), n_prompt, n_steps, seconds)

    def _median(self, measure: Callable[[], float], what: str) -> float:
        self._tick(what)
        return median(self._repeated(measure))

    def _repeated(self, measure: Callable[[], T]) -> list[T]:
        """As many measurements as were asked for, or as fit into ``LONG_SECONDS``: long ones scatter little."""

        def several() -> list[T]:
            start, found = time.perf_counter(), [measure()]
            while len(found) < self._points.repeats and time.perf_counter() - start < LONG_SECONDS:
                found.append(measure())
            return found

        return self._quiet.measure(several)

    def _tick(self, what: str) -> None:
        self._on_point(self._n_done, self._n_all, what)
        self._n_done += 1


def _measure_joules(bench: Bench, points: Points, meter: EnergyMeter, idle_watts: float | None) -> _Joules:
    """Energy above idle of the longest prompt, and of steps of the largest batch."""
    if idle_watts is None:
        return _Joules(None, None)

    def above_idle(work: Callable[[], object]) -> float:
        before, start = meter.joules(), time.perf_counter()
        work()
        return max(0.0, meter.joules() - before - idle_watts * (time.perf_counter() - start))

    n_prompt, n = points.prompts[-1], points.sequences[-1]
    read = above_idle(lambda: bench.prompt_seconds(n_prompt)) / n_prompt
    wrote = above_idle(lambda: bench.step_seconds(n, points.shallow, 2 * points.n_steps))
    n_read = n * max(1, points.shallow - points.n_steps)
    return _Joules(max(0.0, wrote - n_read * read) / (2 * points.n_steps * n), read)


def _switch_cost(bench: Bench, name: str, other: str | None) -> tuple[float, float]:
    """To get the variant into memory beside another, and how long nothing runs; the way there is not counted."""
    if other is None:
        return 0.0, 0.0
    bench.switch_seconds(other)
    return bench.switch_seconds(name)
