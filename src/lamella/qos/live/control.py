"""What may be asked of a running loop: what it decided and why, on and off, a switch by hand, other objectives.

    control = VariantControl(hearing, running=..., switch=client.switch, take=telemetry.take, figures=telemetry.figures)
    control.steer(profile, objectives, "predictive")
    await control.run(stop)

Without ``steer`` nobody decides but hands, and their switches are kept all the same.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from lamella.batching.messages import Switched
from lamella.core.errors import InvalidRequest
from lamella.qos.controller import HOLD_SECONDS, Controller, LoggedChange, Switch
from lamella.qos.live.hearing import Observed, RequestHearing
from lamella.qos.live.learning import alone, learned, pace_of
from lamella.qos.objectives.feasibility import check_feasible
from lamella.qos.objectives.files import objectives_fields
from lamella.qos.objectives.stated import Objectives
from lamella.qos.pace import FOLLOW_SECONDS, HostPace
from lamella.qos.policies.named import named_policy
from lamella.qos.policies.sample import Sample
from lamella.qos.policies.setting import Setting
from lamella.qos.profiles.documents import Profile

LEARN_SECONDS = 10.0
"""What was observed goes into the profile so often."""


@dataclass(frozen=True, slots=True)
class RequestClass:
    """What a request's class means to the engine: its name, and the priority that it has unless it asks for one."""

    name: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class SteeringBasis:
    """What a policy steers by.

    Attributes:
        policy: its name (``policies.named``).
    """

    profile: Profile
    objectives: Objectives
    policy: str


class VariantControl:
    """The loop of one server.

    Attributes:
        controller: that ticks, and keeps what was decided.
        steering: None where only hands decide.
        pace: of the machine, as what runs shows it; policies are told it as a slowdown of all variants.
    """

    def __init__(
        self,
        hearing: RequestHearing,
        *,
        running: Callable[[], str],
        switch: Switch,
        take: Callable[[], Awaitable[Sample]],
        figures: Callable[[], Awaitable[dict[str, Any]]],
        hold_seconds: float | None = None,
        on_change: Callable[[LoggedChange], None] = lambda _: None,
    ) -> None:
        """Nothing is steered yet.

        Args:
            running: the variant that runs now.
            take, figures: a sample for policies, and the same as a document for people.
            hold_seconds: how long a switch by hand holds the policy; None: ``HOLD_SECONDS``, or until memory is short
                where nothing is promised.
            on_change: told every change of variant, those that failed too.
        """
        self._hearing, self._figures, self._take = hearing, figures, take
        self.controller = Controller(None, running, self._sample, switch, on_change=on_change)
        self._hold_seconds = hold_seconds
        self.steering: SteeringBasis | None = None
        self.pace = HostPace()
        self._slowdowns: list[float] = []
        self._observed: list[Observed] = []
        self._followed_at, self._learned_at = -FOLLOW_SECONDS, -LEARN_SECONDS

    def steer(self, profile: Profile, objectives: Objectives, policy: str) -> None:
        """Let a policy decide from now on.

        Raises:
            InvalidRequest: objectives that no variant can meet, with the nearest that one can; an unknown policy.
            UnknownVariant: a static policy of a variant that the profile has not.
        """
        setting = Setting.of(profile, objectives)
        check_feasible(setting)
        self.controller.policy = named_policy(policy, setting)
        self.steering = SteeringBasis(profile, objectives, policy)
        self._hearing.objectives = objectives
        usual = HOLD_SECONDS if objectives.promise_something else math.inf
        self.controller.hold_for(usual if self._hold_seconds is None else self._hold_seconds)

    async def run(self, stop: asyncio.Event) -> None:
        """Decide until told to stop."""
        await self.controller.run(stop)

    async def switch(self, variant: str, *, recompute_cache: bool = False) -> Switched:
        """By hand; holds the policy.  Raises what the engine raises."""
        return await self.controller.change_by_hand(variant, recompute_cache=recompute_cache)

    def change(self, *, is_on: bool | None = None, objectives: Objectives | None = None, policy: str = "") -> None:
        """Turn the policy on (which ends a hold) or off, and give it other objectives, or let another one decide.

        Raises:
            InvalidRequest: there is nothing to control; or as ``steer``, and nothing has changed then.
        """
        if self.steering is None:
            raise InvalidRequest(
                "no policy decides on this server; start it with a model's name and without --policy off, "
                "or with --objectives FILE, or --token-p95 MILLISECONDS"
            )
        if objectives is not None or policy:
            now = self.steering
            self.steer(now.profile, objectives or now.objectives, policy or now.policy)
        if is_on is not None:
            self.controller.is_on = is_on
        if is_on:
            self.controller.release()

    def request_class(self, name: str | None, priority: int | None) -> RequestClass:
        """The class of a request: the one it names, else the first one that is stated.

        Raises:
            InvalidRequest: there is no such class; lists those there are.
        """
        classes: Mapping[str, Any] = self.steering.objectives.classes if self.steering else {}
        if not classes:
            return RequestClass("", priority or 0)
        assert self.steering is not None  # or there were no classes
        chosen = name or next(iter(classes))
        usual = self.steering.objectives.of_class(chosen).priority
        return RequestClass(chosen, usual if priority is None else priority)

    async def figures(self) -> dict[str, Any]:
        """What was seen last, for people; empty where nobody looks."""
        return await self._figures()

    async def document(self) -> dict[str, Any]:
        """What is decided by whom, what was decided, and the latest sample (docs/api.md)."""
        return {
            "control": self._control_fields(),
            "decisions": [_change_fields(change) for change in self.controller.log],
            "sample": await self.figures(),
        }

    def _control_fields(self) -> dict[str, Any] | None:
        if self.steering is None:
            return None
        controller = self.controller
        return {
            "policy": self.steering.policy,
            "is_on": controller.is_on,
            "is_held": controller.is_held,
            "held_until": controller.held_until,
            "objectives": objectives_fields(self.steering.objectives),
            "pace": round(self.pace.times, 3),
            "reason": controller.last_reason,
        }

    async def _sample(self) -> Sample:
        sample = await self._take()
        self._slowdowns.append(sample.slowdown)
        if sample.time - self._followed_at >= FOLLOW_SECONDS:
            self._follow(sample.time)
        if sample.time - self._learned_at >= LEARN_SECONDS:
            self._learn(sample.time)
        return replace(sample, slowdown=sample.slowdown * self.pace.times)

    def _follow(self, now: float) -> None:
        """See how fast the machine was since it was last looked at."""
        assert self.steering is not None  # a policy decides
        slowdown, self._slowdowns = fmean(self._slowdowns), []
        self._followed_at = now
        observed = alone(self._hearing.take_observed(), slowdown)
        ratio = pace_of(self.steering.profile, observed)
        if ratio is not None:
            self.pace = self.pace.seen(ratio)
        self._observed += alone(observed, self.pace.times)

    def _learn(self, now: float) -> None:
        """Move the profile, and let the policy know; what it remembers it keeps."""
        assert self.steering is not None  # a policy decides
        observed, self._observed = self._observed, []
        self._learned_at = now
        profile = learned(self.steering.profile, observed)
        if profile is not self.steering.profile:
            setting = Setting.of(profile, self.steering.objectives)
            self.controller.policy = named_policy(self.steering.policy, setting)
            self.steering = SteeringBasis(profile, self.steering.objectives, self.steering.policy)


def _change_fields(change: LoggedChange) -> dict[str, Any]:
    return {
        "at": change.at,
        "from": change.before,
        "to": change.after,
        "reason": change.reason,
        "by": change.by,
        "failure": change.failure or None,
    }
