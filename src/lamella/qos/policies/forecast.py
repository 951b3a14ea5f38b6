"""What a rung would do under a load: waiting for the first token, time per token, and power.

Continuous batching in its steady state.  With u the share of the time that goes into reading prompts, a step of n
writing sequences taking S(n), and G tokens to be written for each of lambda requests a second, as many sequences write
as Little's law says: n = lambda G S(n) / (1 - u).  Arrivals without memory make n Poisson, so its 95th percentile is
about n + 1.645 sqrt(n).  Prompts are read one after another in pieces between steps: a queue with one server, whose
waiting time exceeds t with probability rho exp(-(1 - rho) t / R).  A class waits only for those of its priority or
higher (``batching.steps.admit`` and ``compose``).

What the queue holds at the time is added: a forecast that only knew the mean would come too late in a burst.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lamella.batching.steps import Pace, prompt_tokens_for
from lamella.qos.policies.sample import ClassSample, Sample
from lamella.qos.policies.setting import Rung, Setting
from lamella.qos.profiles.documents import EngineShape

Z95 = 1.645
"""95th percentile of the standard normal distribution."""
OVERLOAD_SECONDS = 10.0
"""More requests than can be served are taken to come for so long; the backlog is what they wait for."""


MOST_BUSY = 0.97
"""A share of the time that is nearer to all of it makes the formulas say for ever."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would happen.

    Attributes:
        tpot_seconds: 95th percentile over requests of the mean time per token.
        ttft_seconds: 95th percentile of the time to the first token, by class.
        load: engine time that the requests need, as a share of what there is; above 1 the queue grows.
        watts: of the machine; None where energy was not measured.
    """

    tpot_seconds: float
    ttft_seconds: Mapping[str, float]
    load: float
    watts: float | None


@dataclass(frozen=True, slots=True)
class _Demand:
    """What some classes ask for together; means over requests."""

    rate: float
    prompt: float
    generated: float

    @classmethod
    def of(cls, classes: Iterable[ClassSample], growth: float) -> _Demand:
        present = [c for c in classes if c.arrivals_per_second > 0]
        rate = sum(c.arrivals_per_second for c in present)
        if not rate:
            return cls(0.0, 0.0, 0.0)
        prompt = sum(c.arrivals_per_second * c.mean_prompt for c in present) / rate
        generated = sum(c.arrivals_per_second * c.mean_generated for c in present) / rate
        return cls(rate * growth, prompt, generated)


class _Engine:
    """One rung's engine under the load of all classes.

    Attributes:
        n_present: sequences that write together: what the load makes likely, or what is there now if that is more.
    """

    __slots__ = (
        "_caution",
        "_depth",
        "_n_slots",
        "_piece",
        "_piece_work",
        "_slowdown",
        "_speed",
        "_write",
        "n_present",
        "share",
    )

    def __init__(self, rung: Rung, setting: Setting, sample: Sample, total: _Demand, caution: float) -> None:
        self._caution = caution
        self._speed, self._slowdown = rung.speed, sample.slowdown
        self._n_slots = setting.engine.n_sequences
        self._depth = total.prompt + total.generated / 2
        self._write = self._speed.writing(1, self._depth)
        self._piece = self._piece_tokens(setting.engine)
        self._piece_work = self._work(self._piece)
        self.share = self._reading_share(total)
        likely = self._likely(self._writers(total))
        self.n_present = min(float(self._n_slots), max(likely, sample.n_running + sample.n_waiting))

    def step(self, n: float) -> float:
        return self._slowdown * self._speed.writing(max(1.0, n), self._depth)

    def reading_work(self, n_tokens: float) -> float:
        """Engine time that a prompt takes from those who write."""
        whole, rest = divmod(n_tokens, self._piece)
        return whole * self._piece_work + (self._work(math.ceil(rest)) if rest else 0.0)

    def reading_time(self, n_tokens: float) -> float:
        """From the first piece of a prompt to its first token, while others write."""
        if self.n_present < 1:
            return self._slowdown * self._speed.prompt(max(1, math.ceil(n_tokens)))
        return self.reading_work(n_tokens) + math.ceil(n_tokens / self._piece) * self.step(self.n_present)

    def load(self, demand: _Demand) -> float:
        """Share of the engine's time at full slots."""
        each = self.reading_work(demand.prompt) + demand.generated * self.step(self._n_slots) / self._n_slots
        return demand.rate * each

    def tpot(self) -> float:
        return self.step(self.n_present) / (1 - self.share)

    def slot_wait(self, demand: _Demand, n_present: int) -> float:
        """Waiting for a slot: until enough of those before have written everything."""
        n_ahead = max(self._likely(self._writers(demand)), n_present) - self._n_slots
        return max(0.0, n_ahead) * demand.generated * self.step(self._n_slots) / self._n_slots

    def queue_wait(self, demand: _Demand) -> float:
        """95th percentile of waiting for other prompts to be read."""
        each = self.reading_time(demand.prompt)
        busy = min(MOST_BUSY, demand.rate * each)
        return each * math.log(busy / 0.05) / (1 - busy) if busy > 0.05 else 0.0

    def _likely(self, n: float) -> float:
        """A high percentile of a Poisson number around n, nearly."""
        return n + self._caution * math.sqrt(n)

    def _piece_tokens(self, engine: EngineShape) -> int:
        """Tokens of a prompt in one step while others write, as the engine chooses them."""
        n_batch = engine.n_batch
        read = n_batch / (self._slowdown * self._speed.reading(n_batch))
        pace = Pace(read, self._slowdown * self._write, engine.longest_step_seconds)
        return prompt_tokens_for(pace, n_streams=1, n_prompts=1, n_batch=n_batch)

    def _work(self, n_tokens: int) -> float:
        return self._slowdown * (self._speed.mixed(1, self._depth, n_tokens) - self._write)

    def _reading_share(self, demand: _Demand) -> float:
        return min(MOST_BUSY, demand.rate * self.reading_work(demand.prompt))

    def _writers(self, demand: _Demand) -> float:
        """The n of Little's law, on a straight line between whole numbers; more than the slots in overload."""
        tokens_per_second = demand.rate * demand.generated / (1 - self._reading_share(demand))
        needed = tokens_per_second * self.step(1)
        if needed <= 1:
            return needed
        missing = needed - 1
        for n in range(2, self._n_slots + 1):
            needed = tokens_per_second * self.step(n)
            if needed <= n:
                return n - 1 + missing / (missing + n - needed)
            missing = needed - n
        return needed


def forecast(rung: Rung, setting: Setting, sample: Sample, growth: float = 1.0, caution: float = Z95) -> Forecast:
    """What a rung would do.

    Args:
        growth: of the arrivals beyond the sample's.
        caution: how many standard deviations more sequences write together than in the mean.
    """
    total = _Demand.of(sample.classes.values(), growth)
    engine = _Engine(rung, setting, sample, total, caution)
    return Forecast(
        tpot_seconds=engine.tpot(),
        ttft_seconds={name: _ttft(name, engine, setting, sample, growth) for name in sample.classes},
        load=engine.load(total),
        watts=_watts(rung, setting, total),
    )


def _ttft(name: str, engine: _Engine, setting: Setting, sample: Sample, growth: float) -> float:
    """The 95th percentile for a class, behind those of its priority or higher.

    What waits now counts for the lowest priority only: the sample does not say whose it is.
    """
    own = _priority(setting, name)
    before = _Demand.of((c for n, c in sample.classes.items() if _priority(setting, n) >= own), growth)
    is_last = all(_priority(setting, n) >= own for n in sample.classes)
    n_present, unread = (sample.n_running + sample.n_waiting, sample.waiting_tokens) if is_last else (0, 0)
    backlog = engine.reading_time(unread) if unread else 0.0
    overload = OVERLOAD_SECONDS * max(0.0, engine.load(before) - 1)
    read = engine.reading_time(sample.classes[name].long_prompt)
    return read + max(engine.queue_wait(before), backlog) + engine.slot_wait(before, n_present) + overload


def _priority(setting: Setting, name: str) -> int:
    wanted = setting.objectives.classes.get(name)
    return wanted.priority if wanted else 0


def _watts(rung: Rung, setting: Setting, demand: _Demand) -> float | None:
    write, read = rung.profile.joules_per_token, rung.profile.joules_per_prompt_token
    if setting.idle_watts is None or write is None:
        return None
    return setting.idle_watts + demand.rate * (demand.generated * write + demand.prompt * (read or 0.0))
