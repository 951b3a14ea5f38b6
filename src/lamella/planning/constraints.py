"""What a user may add to a knapsack: types to avoid, a floor for some tensors, one type for fused groups, prices.

Constraints(avoid=("IQ3_S",), at_least=(("token_embd", "Q6_K"), ("attn_v", "int5")), fused=True)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella.core.errors import InvalidRequest
from lamella.core.precision import GGML_TYPES, nominal_bits


def all_but(wanted: Sequence[str]) -> tuple[str, ...]:
    """The ggml types to avoid so that tensors have none but these.

    Raises:
        InvalidRequest: a name that is no ggml type.
    """
    names = [name.upper() for name in wanted]
    if unknown := [name for name in names if name not in GGML_TYPES]:
        raise InvalidRequest(f"'{unknown[0]}' is no ggml type; known: {', '.join(GGML_TYPES)}")
    return tuple(name for name in GGML_TYPES if name not in names)


@dataclass(frozen=True, slots=True)
class Constraints:
    """Which types a tensor may have.

    Attributes:
        avoid: ggml types that no measured tensor may have, not even one that is stored in it.
        at_least: (part of a tensor's name, precision): such tensors get a type of at least as many bits per weight.
            The part may hold ``*`` and ``?``; ``attn_v`` means every tensor with that in its name.
        fused: whether attn_q, attn_k and attn_v of a layer share one type, and ffn_gate and ffn_up another, so that
            kernels that multiply by them at once can be used.
    """

    avoid: tuple[str, ...] = ()
    at_least: tuple[tuple[str, str], ...] = ()
    fused: bool = False

    def __post_init__(self) -> None:
        for name in self.avoid:
            if name.upper() not in GGML_TYPES:
                raise InvalidRequest(f"cannot avoid '{name}', which is no ggml type; known: {', '.join(GGML_TYPES)}")
        for pattern, precision in self.at_least:
            if not pattern:
                raise InvalidRequest("a minimum precision needs part of a tensor's name, such as token_embd=Q6_K")
            nominal_bits(precision)  # raises InvalidRequest with the known names

    @property
    def avoided(self) -> frozenset[str]:
        return frozenset(name.upper() for name in self.avoid)

    def least_bits(self, tensor: str) -> float:
        """Fewest bits per weight that a tensor may have; 0 where nothing was said."""
        return max((nominal_bits(p) for pattern, p in self.at_least if _matches(tensor, pattern)), default=0.0)

    def unmatched(self, tensors: tuple[str, ...]) -> tuple[str, ...]:
        """Patterns of ``at_least`` that are in none of the names."""
        return tuple(p for p, _ in self.at_least if not any(_matches(t, p) for t in tensors))

    def settings(self) -> dict[str, str]:
        """As a plan records them; empty for no constraints."""
        said = {
            "avoid": ",".join(sorted(self.avoided)),
            "at_least": ",".join(f"{pattern}={precision}" for pattern, precision in self.at_least),
            "fused": "yes" if self.fused else "",
        }
        return {name: text for name, text in said.items() if text}


@dataclass(frozen=True, slots=True)
class TypePrice:
    """Nanoseconds that a machine takes for each weight of a ggml type, and each token.

    Time per byte is this times the weights in a byte; per weight is what was measured (``llama.kernels``).

    Attributes:
        token, prompt: one token at a time, and batches, in the layout that the engine would choose.
        mapped_token, mapped_prompt: the same where the weights stay mapped: a head that is also the embedding.
    """

    token: float
    prompt: float
    mapped_token: float
    mapped_prompt: float


Prices = Mapping[str, TypePrice]
"""By ggml type."""


def parse_at_least(text: str) -> tuple[str, str]:
    """``"token_embd=Q6_K"`` -> ``("token_embd", "Q6_K")``.

    Raises:
        InvalidRequest: no ``=`` in it.
    """
    pattern, separator, precision = text.partition("=")
    if not separator:
        raise InvalidRequest(f"'{text}' is no minimum precision; write PATTERN=TYPE, for example token_embd=Q6_K")
    return pattern.strip(), precision.strip()


def _matches(tensor: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(tensor, f"*{pattern}*")
