"""Measurements that have no meaning are refused before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from lamella.core.errors import InvalidRequest
from lamella.measuring.settings import MeasureSettings


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"samples": 1}, "at least 2 samples, not 1"),
        ({"window_tokens": 1}, "at least 2 tokens, not 1"),
        ({"scheme": "folded"}, "unknown scheme 'folded'; known: block, channel, truncate"),
        ({"level": "model"}, "unknown level 'model'; known: tensor, layer"),
        ({"probe": "Q9_9"}, "unknown ggml type 'Q9_9' for probes; the default is Q4_0"),
        ({"n_threads": -1}, "n_threads must be at least 0, not -1"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        MeasureSettings(**wrong)


def test_the_least_that_has_a_meaning_is_taken() -> None:
    found = MeasureSettings(k=1, samples=2, window_tokens=2, probe="q4_k", n_threads=0)
    assert (found.k, found.samples, found.window_tokens) == (1, 2, 2)
