"""A profile that follows what the running server observes, so that a disturbed or an old one becomes right.

Observations of a while are taken together: of the steps of one batch size the median counts, because single ones wait
for the front's other work.  What others take of the processor is taken out: the profile is of a machine without them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean, median

from lamella.qos.live.hearing import Observed
from lamella.qos.profiles.documents import Profile
from lamella.qos.profiles.refresh import ObservedPrompt, ObservedStep, refreshed

LEAST_STEPS = 8
"""Fewer steps of a batch size say nothing: one that waited would move their median."""


def learned(profile: Profile, observed: Iterable[Observed], slowdown: float = 1.0) -> Profile:
    """The profile, moved towards what was observed of its variants.

    Args:
        slowdown: how many times longer things took because of others.

    Returns:
        The same profile where nothing says enough.
    """
    seen = list(observed)
    variants = []
    for variant in profile.variants:
        for one in _together([o.what for o in seen if o.variant == variant.name]):
            alone = replace(one, seconds=one.seconds / slowdown)
            variant = refreshed(variant, alone, profile.engine.n_batch)
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
