"""What chat and completions share of their answers: the fields around the choices, and how an end is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from lamella.batching.messages import Finished
from lamella.serving.openai.names import Target
from lamella.serving.openai.runs import Runs
from lamella.serving.openai.streams import encode, event_bytes

_HOLE = "\x00text\x00"
"""Stands nowhere else in an event."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields around the choices, equal in a stream's every event.

    Attributes:
        kind: OpenAI's ``object``.
        has_usage: the stream ends with the usage, and says ``"usage": null`` before.
    """

    id: str
    kind: str
    created: int
    model: str
    has_usage: bool = False

    @classmethod
    def new(cls, prefix: str, unique: str, kind: str, target: Target, has_usage: bool = False) -> Envelope:
        """For an answer that begins now."""
        return cls(f"{prefix}-{unique}", kind, int(time.time()), target.id, has_usage)

    def fields(self) -> dict[str, Any]:
        """As they stand before the choices."""
        return {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}

    def event(self, choice: dict[str, Any]) -> bytes:
        """A stream's event with one choice."""
        usage = {"usage": None} if self.has_usage else {}
        return event_bytes({**self.fields(), "choices": [choice], **usage})

    def around(self, choice_of: Callable[[str], dict[str, Any]]) -> tuple[bytes, bytes]:
        """An event's bytes before and after the text of a choice, to be put between them escaped.

        Args:
            choice_of: makes a choice of its text.
        """
        before, _, after = self.event(choice_of(_HOLE)).rpartition(encode(_HOLE))
        return before, after

    def trailer(self, runs: Runs) -> bytes:
        """What ends a stream: the usage, where it was asked for."""
        return event_bytes({**self.fields(), "choices": [], "usage": runs.usage()}) if self.has_usage else b""

    def response(self, choices: list[dict[str, Any]], runs: Runs) -> Response:
        """The answer in one piece."""
        document = {**self.fields(), "choices": choices, "usage": runs.usage()}
        return Response(encode(document), media_type="application/json")


def end_fields(end: Finished, *, has_calls: bool = False) -> dict[str, Any]:
    """``finish_reason``; a deadline is a ``length`` to OpenAI's clients, with ``ended_by`` to tell it from others."""
    if end.reason == "deadline":
        return {"finish_reason": "length", "ended_by": "deadline"}
    if end.reason == "stop" and has_calls:
        return {"finish_reason": "tool_calls"}
    return {"finish_reason": end.reason}
