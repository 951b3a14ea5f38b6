"""What the page shows of a ``VariantControl``: who decides, what was decided, what was seen of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamella.dashboard.recorder import Recorder, Watched
from lamella.dashboard.state import Change, Control, Machine, Measured, Promise
from lamella.qos.live.control import VariantControl
from lamella.qos.profiles.documents import Profile
from lamella.qos.profiles.speed import SpeedModel

POWER_READERS = ("energy", "nvidia")
"""Those of ``qos/readers`` that can tell power; the page says why none does."""
DEPTH = 64
"""Tokens in the cache for which the time a token is shown, as in ``lamella profile``."""


def recorder_of(client: Watched, control: VariantControl, measured: Mapping[str, Measured] | None = None) -> Recorder:
    """A recorder that knows what a control knows.

    Args:
        measured: of each variant, where the control has no profile.
    """

    def known() -> Mapping[str, Measured]:
        return measured_in(control.steering.profile) if control.steering else measured or {}

    async def read() -> Machine:
        return machine_shown(await control.figures())

    return Recorder(client, known, decided=lambda: changes_shown(control), read_machine=read)


def control_shown(control: VariantControl) -> Control | None:
    """Who chooses variants; None where only hands do."""
    steering, controller = control.steering, control.controller
    if steering is None:
        return None
    classes = steering.objectives.classes.items()
    return Control(
        policy=steering.policy,
        is_on=controller.is_on,
        is_held=controller.is_held,
        held_until=controller.held_until,
        reason=controller.last_reason,
        promises=tuple(Promise(name, c.ttft_seconds, c.tpot_seconds, c.most_kl) for name, c in classes),
        memory_bytes=steering.objectives.memory_bytes,
        power_watts=steering.objectives.power_watts,
    )


def changes_shown(control: VariantControl) -> tuple[Change, ...]:
    """What was decided, oldest first."""
    return tuple(
        Change(change.at, change.before, change.after, change.reason, change.by, change.failure)
        for change in control.controller.log
    )


def machine_shown(figures: Mapping[str, Any]) -> Machine:
    """The machine, out of a control's figures (docs/api.md: ``sample``)."""
    absent = figures.get("absent", {})
    missing = [absent[reader] for reader in POWER_READERS if reader in absent]
    is_told = figures and len(missing) < len(POWER_READERS)
    return Machine(
        available_bytes=figures.get("memory_available_bytes"),
        watts=figures.get("watts"),
        why_no_watts="" if is_told else "; ".join(missing) or "nobody looks at the machine",
    )


def measured_in(profile: Profile) -> dict[str, Measured]:
    """By variant, its time a token alone and its KL."""
    return {
        variant.name: Measured(
            ms_per_token=SpeedModel(variant, profile.engine.n_batch).writing(1, DEPTH) * 1000,
            kl=variant.quality.kl,
            kl_is_measured=variant.quality.is_measured,
        )
        for variant in profile.variants
    }
