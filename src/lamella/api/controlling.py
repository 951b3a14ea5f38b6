"""The loop of a running server: its engine, this machine's readers, and a profile joined to a ``VariantControl``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lamella.api.profiles import (
    KnownVariants,
    keep_learned,
    known_variants,
    not_measured,
    profile_file,
    read_profile,
)
from lamella.core.errors import InvalidRequest
from lamella.qos.controller import LoggedChange, check_hold
from lamella.qos.objectives.feasibility import check_feasible
from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.named import DEFAULT_POLICY, named_policy
from lamella.qos.policies.setting import Setting
from lamella.qos.profiles.documents import Profile
from lamella.qos.profiling.shape import shape_of

if TYPE_CHECKING:
    from lamella.batching.settings import EngineSettings
    from lamella.qos.live.control import VariantControl
    from lamella.serving.supervisor import SupervisedEngine


LINE_SECONDS = 10.0
"""A policy's changes have at most one line in so long."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What a server is to keep, and by what it knows how; made by ``steering``.

    Attributes:
        objectives: of its classes and of the machine.
        policy: its name.
        profile: of its variants, on this machine.
        kept_in: file that the profile goes back to when it has followed what the server observed; None for none.
        hold_seconds: how long a switch by hand stays; None as ``VariantControl`` has it.
    """

    objectives: Objectives
    policy: str
    profile: Profile
    kept_in: Path | None = None
    hold_seconds: float | None = None


def steering(
    settings: EngineSettings,
    objectives: Objectives,
    policy: str = DEFAULT_POLICY,
    *,
    profile: Path | None = None,
    hold_seconds: float | None = None,
    cache_folder: Path,
    known: KnownVariants | None = None,
) -> Steering:
    """What a server needs so that a policy decides; all is checked before anything is started.

    Args:
        policy: as ``lamella simulate`` has it; ``oracle`` knows traces and no server.
        profile: a file, which stays as it is; None for what ``lamella profile`` kept of this store on this machine.
        known: what ``known_variants`` said of this engine; None: it is asked.

    Raises:
        ImpossibleObjectives: with the nearest that are possible.
        InvalidRequest: an unknown policy; nothing was measured on this machine, and how to; the profile is of another
            engine.
        ArtifactError: the file cannot be read.
        UnknownVariant: a static policy of a variant that the profile has not.
    """
    check_hold(hold_seconds)
    known = known or known_variants(settings, cache_folder)
    whole = known.profile if profile is None else _read(profile, settings)
    if whole is None:
        raise not_measured(settings)
    found = known.part_of(whole)
    setting = Setting.of(found, objectives)
    check_feasible(setting)
    named_policy(policy, setting)
    kept_in = None if profile else profile_file(found.model, found.machine, found.engine, cache_folder)
    return Steering(objectives, policy, found, kept_in, hold_seconds)


def _read(path: Path, settings: EngineSettings) -> Profile:
    found, wanted = read_profile(path), shape_of(settings)
    there, here = (msgspec.to_builtins(shape) for shape in (found.engine, wanted))
    differing = [name for name in here if there[name] != here[name]]
    if differing:
        said = (", ".join(f"{name} {shape[name]}" for name in differing) for shape in (there, here))
        raise InvalidRequest("{} is of an engine with {}, and this one has {}".format(path, *said))
    return found


@contextmanager
def controlled(
    client: SupervisedEngine, steering: Steering | None, on_line: Callable[[str], None]
) -> Iterator[VariantControl]:
    """The control of a started engine; in the end its profile is kept, with what it has learned.

    Args:
        steering: None where only hands decide.
        on_line: told every change of variant, in words.
    """
    from lamella.qos.live.control import VariantControl
    from lamella.qos.live.hearing import RequestHearing
    from lamella.qos.live.telemetry import Telemetry
    from lamella.qos.readers.machine import MachineReader
    from lamella.serving.by_hand import running_variant

    assert client.facts is not None  # it has started
    hearing = RequestHearing()
    with MachineReader() as reader:
        telemetry = Telemetry(hearing, reader, n_sequences=client.facts.n_sequences, status=lambda: client.status)
        control = VariantControl(
            hearing,
            running=lambda: running_variant(client),
            switch=client.switch,
            take=telemetry.take,
            figures=telemetry.figures,
            hold_seconds=steering.hold_seconds if steering else None,
            on_change=ChangeLines(on_line),
        )
        if steering is not None:
            control.steer(steering.profile, steering.objectives, steering.policy)
        client.watch(hearing)
        yield control
        if steering is not None and steering.kept_in is not None and control.steering is not None:
            keep_learned(steering.profile, control.steering.profile, steering.kept_in)


class ChangeLines:
    """Changes of variant as lines of a log.

    Under a load between two variants a policy changes every few seconds.  Of its changes only one in ``LINE_SECONDS``
    is a line, which counts those before it; what hands and memory change, and what fails, always is.  The control
    keeps all of them (``Controller.log``).
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._said_at = -math.inf
        self._n_unsaid = 0

    def __call__(self, change: LoggedChange) -> None:
        """Say a change, or count it."""
        is_usual = change.by == "policy" and not change.failure
        if is_usual and change.at - self._said_at < LINE_SECONDS:
            self._n_unsaid += 1
            return
        self._on_line(in_words(change, self._n_unsaid))
        self._n_unsaid = 0
        if is_usual:
            self._said_at = change.at


def in_words(change: LoggedChange, n_before: int = 0) -> str:
    """A line for the log.

    Args:
        n_before: changes before it that had no line.
    """
    end = f"; it failed: {change.failure}" if change.failure else ""
    more = f" (after {n_before} more by policy)" if n_before else ""
    return f"{change.before} -> {change.after} (by {change.by}): {change.reason}{end}{more}"
