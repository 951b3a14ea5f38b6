"""What the page shows, as plain data, and the pure function that puts it together.

    state = panel_state(now, "smollm2", seen, recorder.measured(), recorder.points(since), recorder.changes)

What is not known is None: the page says so, and shows no zero in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella.batching.messages import Hello, LayerFacts, Status, VariantFacts


@dataclass(frozen=True, slots=True)
class Measured:
    """What a profile knows of a variant (``lamella profile``).

    Attributes:
        ms_per_token: one stream alone, on this machine.
        kl: divergence from the reference in nats a token, or None.
        kl_is_measured: else the plan predicted it.
    """

    ms_per_token: float
    kl: float | None = None
    kl_is_measured: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its precision in words, and its bits per weight."""

    precision: str
    bits: float


@dataclass(frozen=True, slots=True)
class Rung:
    """One variant that can run.

    Attributes:
        kl, kl_is_measured: as ``Measured``.
        ms_per_token: as measured, or None.
        is_warm: a switch to it takes a millisecond.
    """

    name: str
    n_bytes: int
    bits_per_weight: float
    kl: float | None
    kl_is_measured: bool
    ms_per_token: float | None
    layers: tuple[Layer, ...]
    is_running: bool
    is_warm: bool


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the requests of one class that ended lately, in seconds; None where none had one."""

    class_name: str
    ttft_p95_seconds: float | None
    tpot_p95_seconds: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine says of itself.

    Attributes:
        available_bytes: what may still be allocated; None where that is not known.
        watts: of processor and devices; None where that cannot be read, and for the first reading.
        why_no_watts: what is missing to read it, in words; "" where nothing is.
    """

    available_bytes: int | None = None
    watts: float | None = None
    why_no_watts: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One second.

    Attributes:
        at: Unix time.
        tokens_per_second: written since the point before; None where that is not known.
        engine_bytes: mapped weights and private memory of the engine process.
        latencies: by class.
    """

    at: float
    variant: str | None
    n_running: int
    n_waiting: int
    tokens_per_second: float | None = None
    engine_bytes: int | None = None
    available_bytes: int | None = None
    watts: float | None = None
    latencies: tuple[Latency, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Another variant runs since then.

    Attributes:
        at: Unix time.
        before: None for the first that ran.
        reason: in words.
        by: who decided: ``policy``, ``memory`` for a policy because memory was short, ``hand``, or ``engine`` for one
            that was started anew.
        failure: why it did not happen; "" if it did.
    """

    at: float
    before: str | None
    after: str
    reason: str
    by: str
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a class of requests is promised; None where nothing is."""

    class_name: str
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    most_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A controller that chooses variants.

    Attributes:
        policy: its name.
        is_on: whether it may change anything.
        is_held: whether a choice by hand stands.
        held_until: Unix time until which it does; None where none does, or until somebody lets the policy decide.
        reason: of its last decision, be it a change or not.
        promises: by class.
        memory_bytes, power_watts: ceilings, or None.
    """

    policy: str
    is_on: bool
    is_held: bool = False
    held_until: float | None = None
    reason: str = ""
    promises: tuple[Promise, ...] = ()
    memory_bytes: int | None = None
    power_watts: float | None = None


@dataclass(frozen=True, slots=True)
class PanelState:
    """Everything on the page.

    Attributes:
        now: Unix time of this state; the page shows times as ages from here, whatever its own clock says.
        variant: that runs, or None.
        n_sequences: requests that run at once.
        n_open: requests that have not ended.
        rungs: all variants, largest first.
        points, changes: oldest first.
        control: None where nobody chooses variants but people.
        why_no_watts: as ``Machine``.
    """

    now: float
    model: str
    variant: str | None
    is_ready: bool
    is_draining: bool
    n_restarts: int
    n_open: int
    n_sequences: int
    rungs: tuple[Rung, ...]
    points: tuple[Point, ...]
    changes: tuple[Change, ...]
    control: Control | None
    why_no_watts: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the front knows of its engine at one time; see ``PanelState`` for the fields."""

    facts: Hello | None
    status: Status | None
    is_ready: bool
    is_draining: bool
    n_restarts: int
    n_open: int


def panel_state(
    now: float,
    name: str,
    seen: Seen,
    measured: Mapping[str, Measured],
    points: Sequence[Point],
    changes: Sequence[Change],
    control: Control | None = None,
    why_no_watts: str = "",
) -> PanelState:
    """The page's data.

    Args:
        name: what the model is called; "" for what its file says.
        measured: by variant; those it lacks are shown with what their plans say.
    """
    facts = seen.facts
    running = facts.variant if facts else None
    warm = frozenset(seen.status.warm if seen.status else ())
    variants = sorted(facts.variants, key=lambda v: -v.n_bytes) if facts else []
    return PanelState(
        now=now,
        model=name or (facts.model if facts else ""),
        variant=running,
        is_ready=seen.is_ready,
        is_draining=seen.is_draining,
        n_restarts=seen.n_restarts,
        n_open=seen.n_open,
        n_sequences=facts.n_sequences if facts else 0,
        rungs=tuple(_rung(v, measured.get(v.name), v.name == running, v.name in warm) for v in variants),
        points=tuple(points),
        changes=tuple(changes),
        control=control,
        why_no_watts=why_no_watts,
    )


def _rung(facts: VariantFacts, measured: Measured | None, is_running: bool, is_warm: bool) -> Rung:
    is_better_known = measured is not None and measured.kl is not None
    return Rung(
        name=facts.name,
        n_bytes=facts.n_bytes,
        bits_per_weight=facts.bits_per_weight,
        kl=measured.kl if measured is not None and is_better_known else facts.predicted_kl,
        kl_is_measured=measured is not None and is_better_known and measured.kl_is_measured,
        ms_per_token=measured.ms_per_token if measured else None,
        layers=tuple(_layer(layer) for layer in facts.layers),
        is_running=is_running,
        is_warm=is_warm,
    )


def _layer(facts: LayerFacts) -> Layer:
    return Layer(facts.precision, facts.bits)
