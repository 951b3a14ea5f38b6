"""Messages to a prompt, by the template that the model file carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


def as_template_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The form that chat templates read."""
    return [{"role": m.role, "content": m.content} for m in messages]
