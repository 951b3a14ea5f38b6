"""Text that the model writes itself: calibration without a file, a download or a licence.

Each sample starts with the model's first token and goes on as the model would, drawn from its unchanged distribution
(temperature 1, no filters).  Where the model ends a text, that sample starts anew, at most ``MAX_RESTARTS`` times; a
model that keeps ending is then taken past its end.  Several samples are written side by side, one token each in every
pass, which costs a fraction of writing them one after the other.  Equal seeds give equal text.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
from numpy.typing import NDArray

from lamella.llama.batch import BatchPart
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.vocabulary import Vocabulary
from lamella.measuring.calibration import Window
from lamella.measuring.progress import Count, ignore, shifted

SIDE_BY_SIDE = 16
MAX_RESTARTS = 4


def write_samples(
    model: Model,
    n_samples: int,
    window_tokens: int,
    seed: int,
    *,
    n_threads: int = 0,
    on_tokens: Count = ignore,
) -> tuple[Window, ...]:
    """Let the model write ``n_samples`` texts of ``window_tokens`` tokens, the first token included.

    Args:
        on_tokens: called with the number of tokens kept so far.
    """
    width = min(SIDE_BY_SIDE, n_samples)
    options = ContextOptions(window_tokens, n_sequences=width, n_batch=max(width, 32), n_threads=n_threads)
    samples: list[Window] = []
    with Context(model, options) as context:
        for first in range(0, n_samples, width):
            chances = [random.Random(f"{seed}/{i}") for i in range(first, min(first + width, n_samples))]
            before = len(samples) * window_tokens
            samples += _write_side_by_side(context, window_tokens, chances, shifted(on_tokens, before))
    return tuple(samples)


def hash_samples(samples: tuple[Window, ...]) -> str:
    """SHA-256 of the token ids, which identify such a text: little-endian, four bytes each."""
    return hashlib.sha256(np.array(samples, "<i4").tobytes()).hexdigest()


def draw(logits: NDArray[np.float32], chance: float) -> int:
    """The token at ``chance`` in [0, 1) of the distribution that the logits describe."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    cumulative = np.cumsum(weights)
    token = int(np.searchsorted(cumulative, chance * cumulative[-1], side="right"))
    return min(token, len(logits) - 1)


def first_token(vocabulary: Vocabulary) -> int:
    """BOS; for models without one the token that separates texts."""
    return next((t for t in (vocabulary.bos, vocabulary.eos) if t >= 0), 0)


def _write_side_by_side(
    context: Context, window_tokens: int, chances: list[random.Random], on_tokens: Count
) -> list[Window]:
    vocabulary = context.model.vocabulary
    start = first_token(vocabulary)
    texts = [[start] for _ in chances]
    restarts = [0] * len(texts)
    for i in range(len(texts)):
        context.forget(i)
    most = 0
    while active := [i for i, text in enumerate(texts) if len(text) < window_tokens]:
        rows = context.decode_parts([BatchPart(i, len(texts[i]) - 1, texts[i][-1:], 1) for i in active])
        for row, i in zip(rows, active, strict=True):
            token = draw(context.logits(row), chances[i].random())
            if vocabulary.ends_generation(token) and restarts[i] < MAX_RESTARTS:
                restarts[i] += 1
                texts[i] = [start]
                context.forget(i)
            else:
                texts[i].append(token)
        most = max(most, sum(map(len, texts)))
        on_tokens(most)
    return [tuple(text) for text in texts]
