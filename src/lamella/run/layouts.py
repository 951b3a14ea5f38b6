"""Mapped or repacked: which copy of a weight is used in which phase.

*Mapped* weights are the shard's own pages: no copy, shared with every other process that runs the store.  *Repacked*
weights are private copies in the layout that the CPU multiplies fastest.  Reading a prompt and writing tokens are
different loads, and either layout may win in either; since a switch takes about a millisecond, the engine may use one
layout for prompts and the other for tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lamella.core.errors import InvalidRequest

if TYPE_CHECKING:  # whoever only checks a setting loads no numpy
    from lamella.llama.kernels import KernelTimes

LayoutPolicy = Literal["auto", "mapped", "repacked"]
LAYOUT_POLICIES: tuple[LayoutPolicy, ...] = get_args(LayoutPolicy)

WORTH_A_COPY = 0.97
"""A repacked copy must take at most this share of the time to be worth its memory."""
WORTH_A_FLIP = 0.92
"""The mapped weights must take at most this share of the repacked ones' time to be worth a flip for a prompt."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the matrices of one ggml type are read from.

    Attributes:
        repack: whether a repacked copy is made at all.
        prompt_from_mapped: whether prompts are read with the mapped weights although a repacked copy exists.
    """

    repack: bool = False
    prompt_from_mapped: bool = False

    @property
    def is_copy_only(self) -> bool:
        """Whether nothing reads the mapped weights."""
        return self.repack and not self.prompt_from_mapped


MAPPED: Mapping[str, Layout] = {}
"""No type has copies."""


def check_policy(policy: str) -> LayoutPolicy:
    """The policy of that name.

    Raises:
        InvalidRequest: there is none.
    """
    for known in LAYOUT_POLICIES:
        if policy == known:
            return known
    raise InvalidRequest(f"unknown layout '{policy}'; known: {', '.join(LAYOUT_POLICIES)}")


def choices(policy: LayoutPolicy, fastest: Mapping[str, Layout]) -> tuple[Mapping[str, Layout], ...]:
    """Layouts that an engine may have, the best first: ``auto`` does without copies where there is no room for them."""
    return (fastest, MAPPED) if policy == "auto" and any(layout.repack for layout in fastest.values()) else (fastest,)


def choose(policy: LayoutPolicy, times: Mapping[str, KernelTimes]) -> dict[str, Layout]:
    """Decide for each ggml type.

    Args:
        times: measured times by type name; types without an entry stay mapped.
    """
    if policy == "mapped":
        return {name: Layout() for name in times}
    if policy == "repacked":
        return {name: Layout(repack=t.has_repacked) for name, t in times.items()}
    return {name: _fastest(t) for name, t in times.items()}


def _fastest(times: KernelTimes) -> Layout:
    if not times.has_repacked:
        return Layout()
    token_gains = times.repacked_token <= WORTH_A_COPY * times.mapped_token
    prompt_gains = times.repacked_prompt <= WORTH_A_COPY * times.mapped_prompt
    prompt_loses = times.mapped_prompt <= WORTH_A_FLIP * times.repacked_prompt
    return Layout(repack=token_gains or (prompt_gains and not prompt_loses), prompt_from_mapped=prompt_loses)
