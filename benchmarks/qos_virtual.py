"""What all ways of ``benchmarks.qos`` share, and the ways in virtual time: what was planned, and at what pace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.qos_kept import Way
from benchmarks.qos_load import Contest
from benchmarks.qos_pace import Sides, scatter, slow_pace, usual_pace
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
N_DRAWS = 5


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
        scatter: of the pace of single requests, as ``ReplayOptions``.
    """

    pace: float
    scatter: float


def static_scatter(bench: Bench, ways: Mapping[str, Way]) -> float:
    """Of the pace of single requests, where nothing is changed."""
    return scatter(static_sides(bench, ways))


def pace_during(way: Way, bench: Bench) -> float:
    """As the requests of this way showed it, beside a replay that changes variants when it did.

    The ways are measured an hour apart, and a shared machine computes faster in one than in another.
    """
    done = Schedule((0.0, *(at for at, _ in way.timeline.changes)),
                    (way.timeline.start, *(variant for _, variant in way.timeline.changes)))  # fmt: skip
    return usual_pace([(way.served, replayed(bench, done).served)])


def simulated(name: str, bench: Bench, ways: Mapping[str, Way], scattered: float) -> dict[str, Any]:
    """What the simulator says of a way: from the profile as it was before, and on the host of that way.

    Nothing is said of ``restart``, whose servers are not ours.

    Args:
        scattered: of ``static_scatter``, the same for all ways.
    """
    if name == "restart":
        return {}
    policy, host = policy_of(name, bench, ways), Host(pace_during(ways[name], bench), scattered)
    draws = [replayed(bench, policy, host, seed=seed) for seed in range(N_DRAWS)]
    return {
        "pace": round(host.pace, 4),
        "simulated": _outcome_fields(replayed(bench, policy)),
        "simulated_at_pace": _outcome_fields(*draws),
    }


def policy_of(name: str, bench: Bench, ways: Mapping[str, Way]) -> Policy:
    """What decides in a way; ``ways`` are those before it, by which an oracle is planned."""
    if name in STATIC:
        return Static(getattr(bench.contest, name))
    return planned_oracle(bench, ways) if name == "oracle" else named_policy(name, bench.setting)


def replayed(bench: Bench, policy: Policy, host: Host = Host(1.0, 0.0), seed: int = 0) -> Outcome:
    """The trace in virtual time, from the profile as it was before."""
    start = policy.variant if isinstance(policy, Static) else bench.start
    options = ReplayOptions(start=start, slowdown=host.pace, scatter=host.scatter, seed=seed)
    return replay(bench.contest.trace, bench.setting, policy, options)


def _outcome_fields(*outcomes: Outcome) -> dict[str, Any]:
    """Means over replays of one way."""
    kls = [outcome.mean_kl for outcome in outcomes if outcome.mean_kl is not None]
    return {
        "attainment": round(fmean(outcome.attainment for outcome in outcomes), 4),
        "kl": round(fmean(kls), 5) if kls else None,
        "changes": round(fmean(outcome.n_switches for outcome in outcomes)),
    }


def share_off(simulated: float, live: float) -> float:
    """Of a KL; the reference alone diverges by nothing, on both sides."""
    return 0.0 if simulated == live else round(abs(simulated / live - 1), 4) if live else float("inf")
