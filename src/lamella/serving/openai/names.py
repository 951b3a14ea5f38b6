"""Names that clients give a model: "", its own, an alias, or any of these with ``@VARIANT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.batching.messages import Hello
from lamella.serving.openai.errors import ApiError


@dataclass(frozen=True, slots=True)
class Target:
    """What a name means.

    Attributes:
        id: the name that answers carry.
        variant: the variant that must compute, or None for whatever runs.
    """

    id: str
    variant: str | None = None


def resolve(name: str, facts: Hello, aliases: Sequence[str]) -> Target:
    """What a client means.

    Raises:
        ApiError: 404, no such model or variant.
    """
    names = {"", facts.model, *aliases}
    if name in names:
        return Target(facts.model)
    base, _, variant = name.rpartition("@")
    if base in names and variant in {known.name for known in facts.variants}:
        return Target(f"{facts.model}@{variant}", variant)
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    raise ApiError(
        404,
        f"The model '{shown}' does not exist; there are {', '.join(model_ids(facts))}.",
        code="model_not_found",
        param="model",
    )


def model_ids(facts: Hello) -> list[str]:
    """The model, and it at each variant."""
    return [facts.model, *(f"{facts.model}@{variant.name}" for variant in facts.variants)]
