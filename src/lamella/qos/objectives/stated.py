"""Objectives: what each class of requests may wait and how good its answers must be; what the machine may spend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lamella.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ClassObjectives:
    """What a class of requests is promised; None promises nothing.

    Attributes:
        ttft_seconds: 95 % of its requests have their first token within this time from their arrival.
        tpot_seconds: 95 % of its requests take at most this time for each further token, in their mean.
        most_kl: quality floor: the variant that runs diverges at most so much from the reference, in nats a token.
        priority: higher goes first, in the engine and where not everything can be met.
    """

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    most_kl: float | None = None
    priority: int = 0

    def is_met_by(self, ttft_seconds: float, tpot_seconds: float) -> bool:
        """Whether one request was as quick as promised."""
        return (self.ttft_seconds is None or ttft_seconds <= self.ttft_seconds) and (
            self.tpot_seconds is None or tpot_seconds <= self.tpot_seconds
        )


@dataclass(frozen=True, slots=True)
class Objectives:
    """All of it.

    Attributes:
        classes: by name; requests of other classes are refused.
        memory_bytes: ceiling for the engine; None for what there is.
        power_watts: ceiling for the machine's processor and devices.
        battery_watts: the same while it runs on battery; None for ``power_watts``.
    """

    classes: Mapping[str, ClassObjectives] = field(default_factory=dict)
    memory_bytes: int | None = None
    power_watts: float | None = None
    battery_watts: float | None = None

    def __post_init__(self) -> None:
        for name, wanted in self.classes.items():
            _check_positive(f"class '{name}': ttft", wanted.ttft_seconds, "s")
            _check_positive(f"class '{name}': tpot", wanted.tpot_seconds, "s")
            if wanted.most_kl is not None and not 0 <= wanted.most_kl < math.inf:
                raise InvalidRequest(f"class '{name}': the largest KL must be a number from 0, not {wanted.most_kl}")
        _check_positive("memory", self.memory_bytes, "bytes")
        _check_positive("power", self.power_watts, "W")
        _check_positive("power on battery", self.battery_watts, "W")

    def of_class(self, name: str) -> ClassObjectives:
        """What a class is promised.

        Raises:
            InvalidRequest: there is no such class; lists those there are.
        """
        if name not in self.classes:
            known = ", ".join(sorted(self.classes)) or "none"
            raise InvalidRequest(f"no objectives for class '{name}'; there are classes: {known}")
        return self.classes[name]

    @property
    def promise_something(self) -> bool:
        """Whether there is more to keep than a memory ceiling."""
        return bool(self.classes) or self.power_watts is not None or self.battery_watts is not None

    def watts(self, *, on_battery: bool) -> float | None:
        """The ceiling that holds now."""
        if on_battery and self.battery_watts is not None:
            return self.battery_watts
        return self.power_watts


def _check_positive(what: str, value: float | None, unit: str) -> None:
    if value is not None and not 0 < value < math.inf:
        raise InvalidRequest(f"{what} must be a number of {unit} above 0, not {value}")
