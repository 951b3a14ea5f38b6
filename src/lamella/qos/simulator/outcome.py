"""What came of a replay: what was promised and kept, by class; quality by token; changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella.qos.objectives.stated import Objectives
from lamella.qos.watching import p95


@dataclass(frozen=True, slots=True)
class Served:
    """One request.

    Attributes:
        class_name: its class.
        arrived: virtual time.
        ttft_seconds: to the first token; infinite if it failed.
        tpot_seconds: mean of the others; 0 where there was only one token.
        tokens: written, by variant.
        failure: why it was not served, in words; "" if it was.
    """

    class_name: str
    arrived: float
    ttft_seconds: float
    tpot_seconds: float
    tokens: Mapping[str, int]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A decision for another variant."""

    time: float
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClassOutcome:
    """One class.

    Attributes:
        n_requests, n_failed: failed ones are requests too, and met nothing.
        attainment: share of the requests that met everything they were promised; 1 without a request.
        ttft_attainment, tpot_attainment: that met this objective; 1 where nothing is promised.
        ttft_p95_seconds, tpot_p95_seconds: of those that were served; None where none was.
        mean_kl: over tokens; None where the divergence of a variant is not known.
        floor_kept: share of the tokens that variants within the quality floor wrote; 1 without a floor.
    """

    n_requests: int
    n_failed: int
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    ttft_p95_seconds: float | None
    tpot_p95_seconds: float | None
    mean_kl: float | None
    floor_kept: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole replay.

    Attributes:
        policy: its name.
        classes: by name.
        attainment: share of all requests that met what they were promised.
        mean_kl: over all tokens; None where it is not known.
        n_failed: requests that were not served.
        n_switches: changes that happened.
        share_at: of the virtual time, by variant that ran.
        joules: consumed; None where energy was not measured.
        virtual_seconds, real_seconds: replayed, and taken for it.
        changes: decisions, in order.
        served: every request, in order of arrival.
    """

    policy: str
    classes: Mapping[str, ClassOutcome]
    attainment: float
    mean_kl: float | None
    n_failed: int
    n_switches: int
    share_at: Mapping[str, float]
    joules: float | None
    virtual_seconds: float
    real_seconds: float
    changes: Sequence[Change]
    served: Sequence[Served]


def class_outcomes(
    served: Sequence[Served], objectives: Objectives, kl: Mapping[str, float | None]
) -> dict[str, ClassOutcome]:
    """What came of each class.

    Args:
        kl: divergence by variant.
    """
    names = sorted({s.class_name for s in served})
    return {name: _of_class([s for s in served if s.class_name == name], objectives, name, kl) for name in names}


def attainment(served: Sequence[Served], objectives: Objectives) -> float:
    """Share of requests that met everything they were promised; 1 without a request."""
    return _share([met(s, objectives) for s in served])


def met(one: Served, objectives: Objectives) -> bool:
    """Whether a request met everything that its class was promised."""
    if one.failure:
        return False
    return objectives.of_class(one.class_name).is_met_by(one.ttft_seconds, one.tpot_seconds)


def mean_kl(served: Sequence[Served], kl: Mapping[str, float | None]) -> float | None:
    """Over tokens; None where a variant that wrote some has no known divergence, or nothing was written."""
    total, n_tokens = 0.0, 0
    for one in served:
        for variant, n in one.tokens.items():
            value = kl[variant]
            if value is None:
                return None
            total += n * value
            n_tokens += n
    return total / n_tokens if n_tokens else None


def _of_class(
    served: Sequence[Served], objectives: Objectives, name: str, kl: Mapping[str, float | None]
) -> ClassOutcome:
    wanted, good = objectives.of_class(name), [s for s in served if not s.failure]
    ttft, tpot = wanted.ttft_seconds, wanted.tpot_seconds
    return ClassOutcome(
        n_requests=len(served),
        n_failed=len(served) - len(good),
        attainment=attainment(served, objectives),
        ttft_attainment=_share([not s.failure and (ttft is None or s.ttft_seconds <= ttft) for s in served]),
        tpot_attainment=_share([not s.failure and (tpot is None or s.tpot_seconds <= tpot) for s in served]),
        ttft_p95_seconds=p95(s.ttft_seconds for s in good),
        tpot_p95_seconds=p95(s.tpot_seconds for s in good if sum(s.tokens.values()) > 1),
        mean_kl=mean_kl(served, kl),
        floor_kept=_floor_kept(good, wanted.most_kl, kl),
    )


def _floor_kept(served: Sequence[Served], most_kl: float | None, kl: Mapping[str, float | None]) -> float:
    if most_kl is None:
        return 1.0
    tokens = [(kl[v], n) for s in served for v, n in s.tokens.items()]
    n_all = sum(n for _, n in tokens)
    return sum(n for value, n in tokens if value is not None and value <= most_kl) / n_all if n_all else 1.0


def _share(truths: Sequence[bool]) -> float:
    return sum(truths) / len(truths) if truths else 1.0
