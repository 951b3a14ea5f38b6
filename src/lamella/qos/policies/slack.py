"""What a rung would break: the chance that a request that writes now ends with more time per token than was promised.

A promise is about the mean over a whole request, so a stream that was fast so far may be slow for a while, and one that
was slow can be made up for.  If a rung ran for a while and the fastest one after it, stream i would be over its promise
after j more tokens for some j; it breaks its promise if it ends there.  When it ends nobody knows, but lengths of the
last requests say how likely each end is:

    loss(rung) = mean over streams of P(ends over its promise | rung, then the fastest)
                                    - P(ends over its promise | the fastest, alone)

What nothing can keep any more is no reason to be fast.  That there are too many streams is one: those that come after
them find fewer.  So those that are expected to come meanwhile count as if they were there: a rung that streams bear as
many as they are, but not as many as they become, fills the slots, and then the fastest is too slow for them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lamella.qos.policies.sample import ClassSample, Sample, Stream
from lamella.qos.policies.setting import Rung, Setting

HORIZON_SECONDS = 2.0
"""A rung is judged by what it would do for so long; until then something else can be decided."""
AIM = 0.97
"""Share of the promised time that is aimed at: steps waver, and a stream that uses all its slack has none for that."""
MOST_READING = 0.8
"""Share of the time that prompts are taken to need, at most."""


@dataclass(frozen=True, slots=True)
class Paces:
    """Seconds a token, and how many tokens at the first of them.

    Attributes:
        step: at the rung that is judged, for ``n_steps`` tokens.
        fastest: at the fastest rung, from then on.
        alone: at the fastest rung, if all others were gone.
    """

    step: float
    fastest: float
    alone: float
    n_steps: float


def losses(rungs: Sequence[Rung], setting: Setting, sample: Sample, times: float = 1.0) -> dict[str, dict[str, float]]:
    """By rung and class: the expected share of its streams that the rung would break, of those that can be kept.

    Args:
        rungs: that may run.
        times: the horizon is so many times longer: for what needs more certainty.
    """
    coming = HORIZON_SECONDS * sample.arrivals_per_second
    steps = {rung.name: step_seconds(rung, setting, sample, coming) for rung in rungs}
    quickest = min(rungs, key=lambda rung: steps[rung.name])
    fastest = steps[quickest.name]
    alone = step_seconds(quickest, setting, replace(sample, n_running=1, n_waiting=0))
    horizon = times * (HORIZON_SECONDS + quickest.profile.prepare_seconds)
    return {
        name: _by_class(setting, sample, Paces(step, fastest, alone, max(1.0, horizon / step)))
        for name, step in steps.items()
    }


def step_seconds(rung: Rung, setting: Setting, sample: Sample, coming: float = 0.0) -> float:
    """From one token of a stream to its next: prompts are read in between.

    Args:
        coming: streams that write beside those that are there.
    """
    n = max(1, min(setting.engine.n_sequences, sample.n_running + sample.n_waiting + round(coming)))
    classes = sample.classes.values()
    rates = [c.arrivals_per_second for c in classes]
    depth = _mean((c.mean_prompt + c.mean_generated / 2 for c in classes), rates)
    prompt = _mean((c.mean_prompt for c in classes), rates)
    write = rung.speed.writing(n, depth)
    read = rung.speed.mixed(n, depth, max(1, round(prompt))) - write
    reading = min(MOST_READING, sample.slowdown * sample.arrivals_per_second * max(0.0, read))
    return sample.slowdown * write / (1 - reading)


def _by_class(setting: Setting, sample: Sample, paces: Paces) -> dict[str, float]:
    found = {}
    for name, seen in sample.classes.items():
        wanted = setting.objectives.classes.get(name)
        streams = [stream for stream in sample.streams if stream.class_name == name]
        if wanted is not None and wanted.tpot_seconds is not None and streams:
            total = sum(_loss(stream, seen, AIM * wanted.tpot_seconds, paces) for stream in streams)
            found[name] = total / len(streams)
    return found


def _loss(stream: Stream, seen: ClassSample, promised: float, paces: Paces) -> float:
    """The chance that a rung breaks a promise that could be kept."""
    late = stream.seconds - promised * (stream.n_written - 1)
    n, ends = paces.n_steps, Ends(stream.n_written, seen)
    first = _over(late, paces.step - promised, 0.0, n)
    then = _over(late + n * (paces.step - promised), paces.fastest - promised, n, math.inf)
    least = _over(late, paces.alone - promised, 0.0, math.inf)
    return max(0.0, ends.within(*first) + ends.within(*then) - ends.within(*least))


def _over(late: float, growth: float, begin: float, end: float) -> tuple[float, float]:
    """The part of ``begin`` to ``end`` in which ``late + growth * (j - begin)`` is above 0."""
    if growth == 0:
        return (begin, end) if late > 0 else (begin, begin)
    turn = min(end, max(begin, begin - late / growth))
    return (turn, end) if growth > 0 else (begin, turn)


class Ends:
    """How likely it is that a stream ends within so many more tokens.

    By the lengths of the last requests that were longer than what it has, and one that is made up: of the mean length
    and without memory.
    """

    __slots__ = ("_lengths", "_mean", "_n_longer", "_n_written")

    def __init__(self, n_written: int, seen: ClassSample) -> None:
        self._lengths, self._mean, self._n_written = seen.lengths, max(1.0, seen.mean_generated), n_written
        self._n_longer = len(self._lengths) - bisect_right(self._lengths, n_written)

    def within(self, begin: float, end: float) -> float:
        """The chance that it ends after more than ``begin`` and at most ``end`` more tokens."""
        if end <= begin:
            return 0.0
        made_up = math.exp(-begin / self._mean) - math.exp(-end / self._mean)
        last = bisect_right(self._lengths, self._n_written + end)
        n_seen = last - bisect_right(self._lengths, self._n_written + begin)
        return (n_seen + made_up) / (self._n_longer + 1)


def _mean(values: Iterable[float], weights: Iterable[float]) -> float:
    """Weighted; 1 where nothing weighs anything."""
    pairs = list(zip(values, weights, strict=True))
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 1.0
