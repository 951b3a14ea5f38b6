"""What a model is measured on, and which variants it gets, where nobody says: choices for a small machine.

    samples, tokens = calibration_size(spec.n_weights)
    steps = first_steps(source_bits=16.0, room_bits=11.2, least_bits=3.2, useful_bits=3.4)  # FirstSteps(4, 8.5, 3.5)

Measuring takes the time: each tensor is probed by reading a text, so it goes with probes, tokens and weights.
Tokens fall as weights rise, so that the work for a probe grows less than the model, down to a fixed least.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL_TOKENS, LEAST_TOKENS = 128, 64
SAMPLES = 2
"""Of text that the model writes: the fewest that have a standard error."""
EASY_WEIGHTS = 256_000_000
"""Up to here all of the tokens are read for every probe."""

STEPS = 4
WIDEST_BITS, NARROWEST_BITS = 8.5, 3.5
WORST_LOSS = 1.0
"""Predicted, in nats a token.  A variant that loses more answers nonsense: SmolLM2 at 3.9 bits a weight is predicted to
lose 6.4, and beside its KV cache it takes 0.7 % less memory than at 4.5."""
LEAST_RANGE_BITS = 0.5
"""Less between the largest and the smallest is not worth several variants."""


@dataclass(frozen=True, slots=True)
class FirstSteps:
    """A ladder of ``n_steps`` variants, in bits per weight."""

    n_steps: int
    first_bits: float
    last_bits: float


def calibration_size(n_weights: int) -> tuple[int, int]:
    """How many samples a model writes of how many tokens, to be measured on."""
    tokens = min(FULL_TOKENS, max(LEAST_TOKENS, FULL_TOKENS * EASY_WEIGHTS // max(1, n_weights)))
    return SAMPLES, tokens // SAMPLES


def most_bits(source_bits: float) -> float:
    """Bits per weight of the largest variant, where memory holds it: more than the file has would add no quality."""
    return min(source_bits, WIDEST_BITS)


def most_stored_bits(source_bits: float) -> float:
    """Bits per weight of all variants together, at most.

    As if none shared a layer, and as near to the largest as several variants ever are: how far down they go, and which
    layers they share, is known only after minutes of measuring.  SmolLM2's store has two thirds of it.
    """
    return STEPS * (most_bits(source_bits) - LEAST_RANGE_BITS / 2)


def first_steps(source_bits: float, room_bits: float, least_bits: float, useful_bits: float) -> FirstSteps:
    """Which variants to build.

    Args:
        source_bits: bits per weight of the model file: more would add bytes and no quality.
        room_bits: of the largest plan that memory holds.
        least_bits: of the smallest plan there is.
        useful_bits: of the smallest plan that loses no more than ``WORST_LOSS``; only memory asks for less.

    Returns:
        One step where the range is too small for several.
    """
    first = max(least_bits, min(room_bits, most_bits(source_bits)))
    last = max(least_bits, min(max(NARROWEST_BITS, useful_bits), first))
    if first - last < LEAST_RANGE_BITS:
        return FirstSteps(1, first, first)
    return FirstSteps(STEPS, first, last)
