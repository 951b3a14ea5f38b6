"""A trace replayed against a profile, by any policy, the oracle included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lamella.qos.objectives.feasibility import check_feasible
from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.decision import Policy
from lamella.qos.policies.named import named_policy
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.profiles.documents import Profile
from lamella.qos.simulator.oracle import plan_oracle
from lamella.qos.simulator.outcome import Outcome
from lamella.qos.simulator.replay import ReplayOptions, replay
from lamella.qos.traces.arrivals import Trace

ORACLE = "oracle"


def simulate(
    trace: Trace, profile: Profile, objectives: Objectives, policy: str, options: ReplayOptions | None = None
) -> Outcome:
    """Replay a trace in virtual time.

    Args:
        policy: ``oracle``, or as ``named_policy``; a static one starts at its own variant.

    Raises:
        InvalidRequest: objectives that no variant can meet, an unknown policy, a class without objectives.
        UnknownVariant: the policy or ``options`` name a variant that the profile has not.
    """
    options = options or ReplayOptions()
    setting = Setting.of(profile, objectives)
    check_feasible(setting)
    chosen: Policy = plan_oracle(trace, setting, options) if policy == ORACLE else named_policy(policy, setting)
    start = options.start or (chosen.variant if isinstance(chosen, Static) else None)
    return replay(trace, setting, chosen, replace(options, start=start))


def plot_outcome(trace: Trace, profile: Profile, objectives: Objectives, outcome: Outcome, path: Path) -> None:
    """Draw a replay to a file: what came, how long tokens took, and which variant ran.

    Raises:
        InvalidRequest: the suffix is none that is drawn.
        StorageFailed: the file cannot be written.
    """
    from lamella.report.replays import plot_replay

    rungs = [rung.name for rung in Setting.of(profile, objectives).rungs]
    longest = max(outcome.share_at, key=outcome.share_at.__getitem__, default=rungs[0])
    start = outcome.changes[0].before if outcome.changes else longest
    plot_replay(trace, outcome.served, objectives, rungs, start, outcome.changes, path)
