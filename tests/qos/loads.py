"""Loads and ladders that tests of policies decide on."""

from __future__ import annotations

from dataclasses import replace

from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.decision import Policy, PolicyState
from lamella.qos.policies.sample import ClassSample, Sample, Stream
from lamella.qos.policies.setting import Setting
from tests.qos.profiles import ladder

GIB = 1 << 30


def load(rate: float, *, prompt: float = 100.0, generated: float = 60.0, measured: float | None = None) -> ClassSample:
    return ClassSample(rate, prompt, 2 * prompt, generated, measured, measured)


def setting_for(wanted: Objectives) -> Setting:
    return Setting.of(ladder(4, joules=0.5), wanted)


def settle(policy: Policy, state: PolicyState, sample: Sample, n: int = 500) -> list[str]:
    """The variants of so many samples, half a second apart, that are alike."""
    variants = [state.variant]
    for i in range(n):
        state = policy.decide(state, replace(sample, time=sample.time + i / 2)).state
        variants.append(state.variant)
    return variants


def writing(n: int, ms_so_far: float, n_written: int = 21) -> tuple[Stream, ...]:
    """Streams that took so long for each token until now."""
    return (Stream("interactive", n_written, (n_written - 1) * ms_so_far / 1000),) * n
