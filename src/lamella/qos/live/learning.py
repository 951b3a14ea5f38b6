"""A profile that follows what the running server observes, so that a disturbed or an old one becomes right.

Observations of a while are taken together: of the steps of one batch size the median counts, because single ones wait
for the front's other work.  What others take of the processor is taken out (``alone``), and so is the pace that all
variants share (``pace_of``, ``qos.pace``): the profile is of the machine as it was measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean, median

from lamella.qos.live.hearing import Observed
from lamella.qos.profiles.documents import Profile
from lamella.qos.profiles.refresh import ObservedPrompt, ObservedStep, refreshed
from lamella.qos.profiles.speed import SpeedModel

LEAST_STEPS = 8
"""Fewer steps, of a batch size or of all, say nothing: one that waited would move their median."""


def alone(observed: Iterable[Observed], slowdown: float) -> list[Observed]:
    """What it would have been on a machine that does nothing else, or at the profile's own pace.

    Args:
        slowdown: how many times longer things took because of that.
    """
    return [replace(one, what=replace(one.what, seconds=one.what.seconds / slowdown)) for one in observed]


def pace_of(profile: Profile, observed: Iterable[Observed]) -> float | None:
    """How many times longer steps took than the profile says: the median, of all variants together.

    Returns:
        None where too few were seen.
    """
    variants = {variant.name: variant for variant in profile.variants}
    steps = [(o.variant, o.what) for o in observed if isinstance(o.what, ObservedStep) and o.variant in variants]
    if len(steps) < LEAST_STEPS:
        return None
    models = {name: SpeedModel(variants[name], profile.engine.n_batch) for name in {name for name, _ in steps}}
    return median(step.seconds / models[name].writing(step.n_sequences, step.depth) for name, step in steps)


def learned(profile: Profile, observed: Iterable[Observed]) -> Profile:
    """The profile, moved towards what was observed of its variants at the profile's own pace.

    Returns:
        The same profile where nothing says enough.
    """
    seen = list(observed)
    variants = []
    for variant in profile.variants:
        for one in _together([o.what for o in seen if o.variant == variant.name]):
            variant = refreshed(variant, one, profile.engine.n_batch)
        variants.append(variant)
    changed = tuple(variants)
    return profile if changed == profile.variants else replace(profile, variants=changed)


def _together(seen: Iterable[ObservedStep | ObservedPrompt]) -> list[ObservedStep | ObservedPrompt]:
    """Steps by batch size as one each; prompts as they are."""
    prompts: list[ObservedStep | ObservedPrompt] = []
    steps: dict[int, list[ObservedStep]] = defaultdict(list)
    for one in seen:
        if isinstance(one, ObservedStep):
            steps[one.n_sequences].append(one)
        else:
            prompts.append(one)
    typical = [
        ObservedStep(n, fmean(s.depth for s in found), median(s.seconds for s in found))
        for n, found in sorted(steps.items())
        if len(found) >= LEAST_STEPS
    ]
    return [*typical, *prompts]
