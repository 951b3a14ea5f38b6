from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.core.errors import EngineFailed, InvalidRequest
from lamella.evaluating.requests import Request, cut_request, make_request
from lamella.evaluating.subject import Room, Subject
from lamella.llama.model import Model
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

TEXT = "The quick brown fox jumps over the lazy dog"


@settings(deadline=None, max_examples=20, suppress_health_check=UNCHECKED)
@given(n_context=st.integers(1, 42), n_batch=st.integers(1, 44), n_outputs=st.integers(1, 44))
def test_passes_of_any_size_give_the_same_losses(store: Store, n_context: int, n_batch: int, n_outputs: int) -> None:
    with Subject(store, [store.variant("small")]) as subject:
        subject.use("small")
        tokens = tuple(subject.vocabulary.tokenize(TEXT))
        request = Request(tokens[:n_context], tokens[n_context:])
        subject.make_room(Room(64, 64, 64), 1)
        whole = subject.answer(request)
        subject.make_room(Room(64, n_batch, n_outputs), 1)
        for asked in (request, request):  # from nothing, and from the KV cache
            pieces = subject.answer(asked)
            assert pieces.losses == pytest.approx(whole.losses, rel=2e-2, abs=2e-2)  # other batches round differently
            assert len(pieces.losses) == len(request.continuation)


def test_what_is_shared_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Subject(store, [store.variant("small")]) as subject:
        subject.use("small")
        subject.make_room(Room(64, 64, 8), 1)
        read: list[int] = []
        decode = subject._working.decode

        def counted(tokens: tuple[int, ...], start: int, *, n_outputs: int) -> None:
            read.append(len(tokens))
            decode(tokens, start, n_outputs=n_outputs)

        monkeypatch.setattr(subject._working, "decode", counted)
        for choice in (" yes", " yellow"):
            subject.losses(make_request(subject.vocabulary, TEXT, choice, 256))
        before = len(TEXT) + 2  # BOS and a space
        assert read == [before + 3, 1 + 6]  # the last token of the context again: its logits score the first letter


@pytest.mark.parametrize("add_bos", [True, False])
def test_nothing_is_asked_about_the_end_of_a_text(tmp_path: Path, add_bos: bool) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", n_layers=1, add_bos=add_bos, add_eos=True)
    with Model.load([path]) as model:
        vocabulary = model.vocabulary
        start = [vocabulary.bos] if add_bos else []
        context = [*start, *vocabulary.tokenize("The fox", add_special=False)]
        asked = make_request(vocabulary, "The fox", " jumps", 256)
        assert vocabulary.text(asked.continuation) == " jumps"
        assert list(asked.context) == context
        assert list(make_request(vocabulary, "", "jumps", 256).context) == [vocabulary.bos]


def test_a_variant_that_computes_no_numbers_has_no_figures(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Subject(store, [store.variant("small")]) as subject:
        subject.use("small")
        subject.make_room(Room(64, 64, 8), 1)
        last = subject._working.last_logits
        monkeypatch.setattr(subject._working, "last_logits", lambda n: np.full_like(last(n), np.nan))
        with pytest.raises(EngineFailed, match="variant small computes NaN"):
            subject.losses(make_request(subject.vocabulary, TEXT, " yes", 256))


def test_room_is_for_the_longest_and_bounded() -> None:
    requests = [Request((1,) * 3000, (1,) * 10), Request((1,), (1,) * 900)]
    assert Room.for_requests(requests) == Room(3009, 2048, 512)
    assert Room(10, 10, 5).joined(Room(8, 20, 1)) == Room(10, 20, 5)


def test_a_context_gives_way_to_its_continuation() -> None:
    assert cut_request([1, 2, 3, 4], [5, 6], 4) == Request((2, 3, 4), (5, 6), n_cut=1)
    with pytest.raises(InvalidRequest, match="a continuation of 6 tokens; the model reads 5"):
        cut_request([1], [2] * 6, 5)
    with pytest.raises(InvalidRequest, match="no tokens"):
        cut_request([1], [], 5)
