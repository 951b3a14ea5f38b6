"""What a policy chooses among: the variants of a profile as rungs, best first, and what they are to meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from lamella.core.errors import InvalidRequest, UnknownVariant
from lamella.qos.objectives.stated import Objectives
from lamella.qos.profiles.documents import EngineShape, Profile, VariantProfile
from lamella.qos.profiles.speed import SpeedModel


@dataclass(frozen=True, slots=True)
class Rung:
    """One variant.

    Attributes:
        name: of the variant.
        rank: 0 for the best.
        kl: divergence from the reference, in nats a token; None where nobody knows.
        memory_bytes: of the engine at this variant.
        profile, speed: what was measured, and the model through it.
    """

    name: str
    rank: int
    kl: float | None
    memory_bytes: int
    profile: VariantProfile
    speed: SpeedModel


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same from one decision to the next.

    Attributes:
        rungs: best first.
        objectives: to be met.
        engine: limits of a step.
        idle_watts: None where power cannot be measured.
    """

    rungs: Sequence[Rung]
    objectives: Objectives
    engine: EngineShape
    idle_watts: float | None = None

    @classmethod
    def of(cls, profile: Profile, objectives: Objectives) -> Self:
        """The rungs of a profile, by divergence where that is known of all variants, else by bits.

        Raises:
            InvalidRequest: the profile has no variant.
        """
        if not profile.variants:
            raise InvalidRequest("the profile has no variant; measure some: lamella profile STORE")
        ordered = sorted(profile.variants, key=_worth(profile.variants))
        rungs = tuple(
            Rung(v.name, i, v.quality.kl, v.memory_bytes, v, SpeedModel(v, profile.engine.n_batch))
            for i, v in enumerate(ordered)
        )
        return cls(rungs, objectives, profile.engine, profile.idle_watts)

    def rung(self, name: str) -> Rung:
        """The rung of a variant.

        Raises:
            UnknownVariant: there is none; lists those there are.
        """
        for rung in self.rungs:
            if rung.name == name:
                return rung
        raise UnknownVariant(f"no variant '{name}' to choose; there are: {', '.join(r.name for r in self.rungs)}")


def _worth(variants: Sequence[VariantProfile]) -> Callable[[VariantProfile], tuple[float, int, str]]:
    """Sorts the best first; of equals the smaller."""
    is_known = all(v.quality.kl is not None for v in variants)

    def key(variant: VariantProfile) -> tuple[float, int, str]:
        kl = variant.quality.kl
        return (kl if is_known and kl is not None else -variant.bits_per_weight), variant.memory_bytes, variant.name

    return key
