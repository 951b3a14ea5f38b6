"""Points moved by what the running server observes: weighted means that never stop learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from lamella.qos.profiles.documents import PromptPoint, StepPoint, VariantProfile
from lamella.qos.profiles.speed import SpeedModel

MOST_SEEN = 50.0
"""An observation weighs at least 1 in so many, so that old ones are forgotten."""
WILDEST = 4.0
"""One observation counts as at most so many times slower or faster; more is a hiccup."""
P = TypeVar("P", PromptPoint, StepPoint)


@dataclass(frozen=True, slots=True)
class ObservedStep:
    """Steps in which nothing was read.

    Attributes:
        depth: tokens of each sequence, in the mean.
        seconds: of one step.
    """

    n_sequences: int
    depth: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ObservedPrompt:
    """A prompt that was read while nobody wrote, none of it from the cache."""

    n_tokens: int
    seconds: float


def refreshed(variant: VariantProfile, seen: ObservedStep | ObservedPrompt, n_batch: int) -> VariantProfile:
    """The profile with the measured points beside an observation moved towards it.

    Both neighbours move by the ratio of observed to predicted time, each by its closeness and by what it has seen.
    An observation that is not above 0 changes nothing.
    """
    if seen.seconds <= 0:
        return variant
    model = SpeedModel(variant, n_batch)
    if isinstance(seen, ObservedStep):
        ratio = tamed(seen.seconds / model.writing(seen.n_sequences, seen.depth))
        return replace(variant, steps=_moved(variant.steps, lambda p: p.n_sequences, seen.n_sequences, ratio))
    ratio = tamed(seen.seconds / model.prompt(seen.n_tokens))
    return replace(variant, prompt=_moved(variant.prompt, lambda p: p.n_tokens, seen.n_tokens, ratio))


def tamed(ratio: float) -> float:
    """How many times slower something may count as, at most."""
    return min(WILDEST, max(1 / WILDEST, ratio))


def _moved(points: Sequence[P], x_of: Callable[[P], int], x: int, ratio: float) -> tuple[P, ...]:
    xs = sorted({x_of(p) for p in points})
    below = max((v for v in xs if v <= x), default=xs[0])
    above = min((v for v in xs if v >= x), default=xs[-1])
    share = (x - below) / (above - below) if above > below else 0.0
    closeness = {above: share, below: 1 - share} if above > below else {below: 1.0}
    return tuple(_moved_point(p, closeness.get(x_of(p), 0.0), ratio) for p in points)


def _moved_point(point: P, closeness: float, ratio: float) -> P:
    if not closeness:
        return point
    n_seen = min(MOST_SEEN, point.n_seen + closeness)
    return replace(point, seconds=point.seconds * (1 + (ratio - 1) * closeness / n_seen), n_seen=n_seen)
