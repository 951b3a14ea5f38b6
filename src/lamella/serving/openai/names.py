"""Names that clients give a model: "", its own, an alias, or any of these with ``@VARIANT``."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.batching.messages import Hello
from lamella.serving.openai.errors import ApiError
from lamella.serving.settings import FrontSettings


@dataclass(frozen=True, slots=True)
class Target:
    """What a name means.

    Attributes:
        id: the name that answers carry.
        variant: the variant that must compute, or None for whatever runs.
    """

    id: str
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names of one model.

    Attributes:
        shown: the one that lists and answers carry.
        others: that are understood besides.
        variants: what may follow an ``@``, largest first.
    """

    shown: str
    others: frozenset[str]
    variants: tuple[str, ...]

    @classmethod
    def of(cls, facts: Hello, settings: FrontSettings) -> ModelNames:
        """What the server's settings call the model; what its file calls itself is understood too."""
        shown = settings.name or facts.model
        variants = tuple(variant.name for variant in facts.variants)
        return cls(shown, frozenset(("", facts.model, *settings.aliases)), variants)

    def ids(self) -> list[str]:
        """The model, and it at each variant."""
        return [self.shown, *(f"{self.shown}@{variant}" for variant in self.variants)]

    def resolve(self, name: str) -> Target:
        """What a client means.

        Raises:
            ApiError: 404, no such model or variant.
        """
        if self._is_model(name):
            return Target(self.shown)
        base, _, variant = name.rpartition("@")
        if self._is_model(base) and variant in self.variants:
            return Target(f"{self.shown}@{variant}", variant)
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        raise ApiError(
            404,
            f"The model '{shown}' does not exist; there are {', '.join(self.ids())}.",
            code="model_not_found",
            param="model",
        )

    def _is_model(self, name: str) -> bool:
        return name == self.shown or name in self.others
