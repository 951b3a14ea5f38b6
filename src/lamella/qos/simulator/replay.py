"""A trace against a profile: arrivals in, samples to a policy, its decisions to the virtual engine.

setting = Setting.of(profile, objectives)
outcome = replay(named_trace("poisson:rate=2,seconds=600"), setting, Predictive(setting))
outcome.attainment, outcome.mean_kl
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from lamella.qos.pace import FOLLOW_SECONDS, HostPace
from lamella.qos.policies.decision import Policy, PolicyState
from lamella.qos.policies.sample import Sample, Stream
from lamella.qos.policies.setting import Setting
from lamella.qos.simulator.engine import VirtualEngine, VirtualRequest
from lamella.qos.simulator.outcome import Change, Outcome, Served, attainment, class_outcomes, mean_kl
from lamella.qos.simulator.slowdown import Slowdown
from lamella.qos.traces.arrivals import Trace
from lamella.qos.watching import LoadWatch


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How a replay goes.

    Attributes:
        start: variant that runs first; None for the best.
        sample_seconds: time between two samples.
        max_queue: requests that may wait beside those that run; more are refused (``lamella serve --queue``).
        n_warm: variants that stay in memory, the running one included; None for all, as where memory is plenty.
        slowdown: how much longer steps take than in the profile, because of others; policies are told.
        scatter: standard deviation of the logarithm of what they take beyond, in spells (``slowdown``); policies are
            told what steps of late show of it, as in the server (``qos.pace``).
        seed: of the spells.
        course: of a machine that somebody watched: seconds, and how many times longer than ``slowdown`` says steps took
            then (above 0), straight between them; spells come on top, and policies are told of both by steps of late.
    """

    start: str | None = None
    sample_seconds: float = 0.25
    max_queue: int = 64
    n_warm: int | None = None
    slowdown: float = 1.0
    scatter: float = 0.0
    seed: int = 0
    course: tuple[tuple[float, float], ...] = ()


def replay(trace: Trace, setting: Setting, policy: Policy, options: ReplayOptions | None = None) -> Outcome:
    """Replay a trace.

    Raises:
        InvalidRequest: the trace has a class without objectives.
        UnknownVariant: the first variant is not in the profile.
    """
    for name in trace.classes():
        setting.objectives.of_class(name)
    return _Replay(trace, setting, policy, options or ReplayOptions()).run()


class _Replay:
    """One replay from beginning to end."""

    def __init__(self, trace: Trace, setting: Setting, policy: Policy, options: ReplayOptions) -> None:
        self._trace, self._setting, self._policy, self._options = trace, setting, policy, options
        start = options.start or setting.rungs[0].name
        self._engine = VirtualEngine(
            setting,
            start,
            on_first_token=self._began,
            on_end=self._ended,
            n_warm=options.n_warm or len(setting.rungs),
            slowdown=Slowdown(options.slowdown, options.scatter, options.seed, options.course),
        )
        self._watch = LoadWatch()
        self._state = PolicyState(start, since=-math.inf)
        self._pace = HostPace()
        self._paced_at = 0.0
        self._changes: list[Change] = []
        self._served: dict[int, Served] = {}

    def run(self) -> Outcome:
        began = time.perf_counter()
        next_sample = 0.0
        for request in self._requests():
            while next_sample <= request.arrival.seconds:
                self._engine.run_until(next_sample)
                self._sample(next_sample)
                next_sample += self._options.sample_seconds
            self._engine.run_until(request.arrival.seconds)
            self._arrive(request)
        while not self._engine.is_idle:
            self._engine.run_until(next_sample)
            self._sample(next_sample)
            next_sample += self._options.sample_seconds
        return self._outcome(time.perf_counter() - began)

    def _requests(self) -> Iterator[VirtualRequest]:
        for i, arrival in enumerate(self._trace.arrivals):
            yield VirtualRequest(i, arrival, self._setting.objectives.classes[arrival.class_name].priority)

    def _arrive(self, request: VirtualRequest) -> None:
        arrival, shape = request.arrival, self._setting.engine
        if arrival.n_prompt + arrival.n_generated > shape.n_ctx:
            self._fail(request, f"{arrival.n_prompt} + {arrival.n_generated} tokens, the context holds {shape.n_ctx}")
        elif len(self._engine.running) + len(self._engine.waiting) >= shape.n_sequences + self._options.max_queue:
            self._fail(request, "too many requests are open")
        else:
            self._engine.add(request)
            self._watch.arrived(arrival.seconds, arrival.class_name, arrival.n_prompt)

    def _fail(self, request: VirtualRequest, why: str) -> None:
        arrival = request.arrival
        self._served[request.id] = Served(arrival.class_name, arrival.seconds, math.inf, math.inf, {}, why)

    def _began(self, request: VirtualRequest) -> None:
        ttft = self._engine.now - request.arrival.seconds
        self._watch.began(self._engine.now, request.arrival.class_name, ttft)

    def _ended(self, request: VirtualRequest) -> None:
        arrival, now = request.arrival, self._engine.now
        n_further = arrival.n_generated - 1
        tpot = (now - request.first_token_at) / n_further if n_further else None
        ttft = request.first_token_at - arrival.seconds
        kept = self._setting.objectives.classes[arrival.class_name].is_met_by(ttft, tpot or 0.0)
        self._watch.ended(now, arrival.class_name, arrival.n_generated, tpot, kept=kept)
        self._served[request.id] = Served(arrival.class_name, arrival.seconds, ttft, tpot or 0.0, request.written_by)

    def _sample(self, now: float) -> None:
        engine = self._engine
        now = max(now, engine.now)
        if now - self._paced_at >= FOLLOW_SECONDS and engine.running:
            self._paced_at, self._pace = now, self._pace.seen(engine.slowdown_seen / self._options.slowdown)
        sample = Sample(
            time=now,
            classes=self._watch.classes(now),
            n_running=len(engine.running),
            n_waiting=len(engine.waiting),
            waiting_tokens=sum(r.n_unread for r in (*engine.running.values(), *engine.waiting.values())),
            slowdown=self._options.slowdown * self._pace.times,
            streams=[
                Stream(r.arrival.class_name, r.n_written, now - r.first_token_at)
                for r in engine.running.values()
                if r.n_written
            ],
        )
        decision = self._policy.decide(self._state, sample)
        if decision.variant != self._state.variant:
            self._changes.append(Change(now, self._state.variant, decision.variant, decision.reason))
        self._state = decision.state
        engine.want(decision.variant)

    def _outcome(self, real_seconds: float) -> Outcome:
        setting, engine = self._setting, self._engine
        served = tuple(self._served[i] for i in sorted(self._served))
        kl = {rung.name: rung.kl for rung in setting.rungs}
        return Outcome(
            policy=self._policy.name,
            classes=class_outcomes(served, setting.objectives, kl),
            attainment=attainment(served, setting.objectives),
            mean_kl=mean_kl(served, kl),
            n_failed=sum(bool(s.failure) for s in served),
            n_switches=engine.n_switches,
            share_at={v: s / engine.now for v, s in engine.seconds_at.items() if engine.now},
            joules=self._joules(served),
            virtual_seconds=engine.now,
            real_seconds=real_seconds,
            changes=tuple(self._changes),
            served=served,
        )

    def _joules(self, served: tuple[Served, ...]) -> float | None:
        """Idle power over the whole time, and what tokens take above; a prompt as the variant of its first token."""
        idle = self._setting.idle_watts
        if idle is None:
            return None
        total = idle * self._engine.now
        for one, arrival in zip(served, self._trace.arrivals, strict=True):
            for i, (variant, n) in enumerate(one.tokens.items()):
                profile = self._setting.rung(variant).profile
                if profile.joules_per_token is None or profile.joules_per_prompt_token is None:
                    return None
                total += n * profile.joules_per_token
                total += 0 if i else arrival.n_prompt * profile.joules_per_prompt_token
        return total
