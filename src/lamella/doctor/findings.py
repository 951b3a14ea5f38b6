"""What the doctor says of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """``ok``; ``warning``: slower, or something that not everybody needs is missing; ``problem``: models cannot run."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what: ``compiler``, ``memory`` ...
        found: the facts, in a sentence.
        cure: what to do; "" where nothing needs to be done.
        exit_code: of a problem: that of the error which whoever ran into it would see (``core.errors``).
    """

    check: str
    status: Status
    found: str
    cure: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found, in the order of the checks."""

    findings: Sequence[Finding]

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.status is Status.PROBLEM)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.status is Status.WARNING)

    @property
    def exit_code(self) -> int:
        """0 without a problem, else that of the first."""
        return next((f.exit_code for f in self.problems), 0)
