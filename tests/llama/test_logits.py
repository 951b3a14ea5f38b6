from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.llama.logits import Column, Reference, survey, token_losses, top_logprobs


def _logits(seed: int, rows: int = 19, columns: int = 300) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 4).astype(np.float32)


def _normalizers(logits: NDArray[np.float32]) -> Column:
    return survey(logits).normalizers


def _divergences(p: NDArray[np.float32], q: NDArray[np.float32], n_threads: int = 1) -> Column:
    """Of ``q`` from ``p``."""
    reference = Reference(p.shape)
    reference.hold(p, _normalizers(p), n_threads)
    return reference.divergences(q, _normalizers(q), n_threads)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return found


def test_losses_are_those_of_a_softmax_in_double_precision() -> None:
    logits, targets = _logits(0), np.arange(19) * 7
    expected = -_log_softmax(logits)[np.arange(19), targets]
    assert token_losses(logits, _normalizers(logits), targets) == pytest.approx(expected, abs=1e-5)


def test_huge_logits_do_not_overflow() -> None:
    assert _normalizers(np.full((1, 4), 1e4, np.float32)) == pytest.approx([1e4 + np.log(4)])


def test_divergence_is_the_textbook_sum() -> None:
    p, q = _logits(1), _logits(2)
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert _divergences(p, q) == pytest.approx(expected, rel=1e-5)


def test_small_divergences_are_not_lost_in_rounding() -> None:
    p = _logits(1)
    q = p + np.random.default_rng(3).standard_normal(p.shape).astype(np.float32) * 1e-2
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert _divergences(p, q) == pytest.approx(expected, abs=2e-6)


def test_a_distribution_does_not_diverge_from_itself() -> None:
    p = _logits(4)
    assert not _divergences(p, p.copy()).any()


def test_the_likeliest_token_is_the_first_of_the_largest() -> None:
    assert survey(np.array([[0, 3, 1, 3], [2, 1, 0, 0]], np.float32)).best.tolist() == [1, 0]


@pytest.mark.parametrize("n_threads", [2, 3, 16])
def test_threads_change_nothing(n_threads: int) -> None:
    p, q = _logits(5, rows=23), _logits(6, rows=23)
    alone, together = survey(p), survey(p, n_threads)
    assert (together.normalizers == alone.normalizers).all()
    assert (together.best == alone.best).all()
    assert (_divergences(p, q, n_threads) == _divergences(p, q)).all()


def test_a_reference_keeps_what_it_held_when_the_logits_change() -> None:
    p, q = _logits(7), _logits(8)
    expected = _divergences(p, q)
    reference, view = Reference(p.shape), p.copy()
    reference.hold(view, _normalizers(p))
    view[:] = q
    assert (reference.divergences(view, _normalizers(q)) == expected).all()


@pytest.mark.parametrize("n", [0, 1, 5, 300, 400])
def test_the_likeliest_tokens_come_in_order(n: int) -> None:
    logits = _logits(8, rows=1)[0]
    expected = _log_softmax(logits[None])[0]
    own, best = top_logprobs(logits, 17, n)
    assert own == pytest.approx(expected[17], abs=1e-5)
    assert [token for token, _ in best] == list(np.argsort(-expected)[:n])
    assert [value for _, value in best] == pytest.approx(sorted(expected, reverse=True)[:n], abs=1e-5)


def test_equally_likely_tokens_come_by_number() -> None:
    own, best = top_logprobs(np.full(4, 1e4, np.float32), 2, 4)
    assert own == pytest.approx(-np.log(4))
    assert [token for token, _ in best] == [0, 1, 2, 3]
