"""What all ways of ``benchmarks.qos`` share, and the ways in virtual time: what was planned, and on what machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.qos_kept import Way
from benchmarks.qos_load import Contest
from benchmarks.qos_pace import Sides, course, slow_pace, usual_pace
from benchmarks.replayed import Timeline
from lamella.qos.policies.decision import Policy
from lamella.qos.policies.named import named_policy
from lamella.qos.policies.schedule import Schedule
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.simulator.oracle import plan_oracle
from lamella.qos.simulator.outcome import Outcome
from lamella.qos.simulator.replay import ReplayOptions, replay
from lamella.store.store import Store

STATIC = ("highest", "lowest")
N_PASSES = 4
"""After so many, a replay takes what the requests took, but for 1 % (tests/qos/test_watched.py)."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all ways share."""

    store: Store
    folder: Path
    profile_file: Path
    setting: Setting
    contest: Contest
    prompts: Sequence[list[int]]

    @property
    def start(self) -> str:
        return self.contest.highest


def planned_oracle(bench: Bench, ways: Mapping[str, Way]) -> Schedule:
    """For the slow minutes that the static ways showed; for the profile's own pace where neither was measured."""
    options = ReplayOptions(start=bench.start, slowdown=slow_pace(static_sides(bench, ways)))
    return plan_oracle(bench.contest.trace, bench.setting, options)


def static_sides(bench: Bench, ways: Mapping[str, Way]) -> list[Sides]:
    """The static ways, live and simulated."""
    found = [name for name in ways if name in STATIC]
    return [(ways[name].served, replayed(bench, policy_of(name, bench, {})).served) for name in found]


@dataclass(frozen=True, slots=True)
class Host:
    """What the machine was like while a way was measured.

    Attributes:
        pace: how many times longer tokens took than the profile says.
        course: of the pace from minute to minute, as ``ReplayOptions``.
    """

    pace: float = 1.0
    course: tuple[tuple[float, float], ...] = ()


def host_of(way: Way, bench: Bench) -> Host:
    """As the requests of this way showed it, beside a replay that changes variants when it did.

    The ways are measured an hour apart, and a shared machine computes faster in one than in another, and in one minute
    than in the next: a percent is a tenth of the divergence where a policy just keeps a promise.  On a slower machine
    more streams run at once, and tokens take longer for that, too: so the replay is repeated on what was found.
    """
    done = _schedule(way.timeline)
    host = Host()
    for _ in range(N_PASSES):
        sides = way.served, replayed(bench, done, host).served
        known = dict(host.course)
        minutes = tuple((at, known.get(at, 1.0) * times) for at, times in course(sides))
        host = Host(host.pace * usual_pace([sides]), minutes)
    return host


def _schedule(timeline: Timeline) -> Schedule:
    """What ran when; changes before the trace begins count as its start."""
    before = [variant for at, variant in timeline.changes if at <= 0]
    later = [(at, variant) for at, variant in timeline.changes if at > 0]
    starts, variants = zip((0.0, before[-1] if before else timeline.start), *later, strict=True)
    return Schedule(starts, variants)


def simulated(name: str, bench: Bench, ways: Mapping[str, Way]) -> dict[str, Any]:
    """What the simulator says of a way: from the profile as it was before, and on the machine of that way.

    Nothing is said of ``restart``, whose servers are not ours.
    """
    if name == "restart":
        return {}
    policy, host = policy_of(name, bench, ways), host_of(ways[name], bench)
    return {
        "pace": round(host.pace, 4),
        "course": [[seconds, round(times, 3)] for seconds, times in host.course],
        "simulated": _outcome_fields(replayed(bench, policy)),
        "simulated_at_pace": _outcome_fields(replayed(bench, policy, host)),
    }


def policy_of(name: str, bench: Bench, ways: Mapping[str, Way]) -> Policy:
    """What decides in a way; ``ways`` are those before it, by which an oracle is planned."""
    if name in STATIC:
        return Static(getattr(bench.contest, name))
    return planned_oracle(bench, ways) if name == "oracle" else named_policy(name, bench.setting)


def replayed(bench: Bench, policy: Policy, host: Host = Host()) -> Outcome:
    """The trace in virtual time, from the profile as it was before."""
    start = policy.variant if isinstance(policy, Static) else bench.start
    options = ReplayOptions(start=start, slowdown=host.pace, course=host.course)
    return replay(bench.contest.trace, bench.setting, policy, options)


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    return {
        "attainment": round(outcome.attainment, 4),
        "kl": None if outcome.mean_kl is None else round(outcome.mean_kl, 5),
        "changes": outcome.n_switches,
    }


def share_off(simulated: float, live: float) -> float:
    """Of a KL; the reference alone diverges by nothing, on both sides."""
    return 0.0 if simulated == live else round(abs(simulated / live - 1), 4) if live else float("inf")
