"""A KV cache that one engine leaves to the next: what was computed is not computed again, and nothing changes by it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lamella.batching.messages import CacheSaved, Generate, Refused, SaveCache, Step
from lamella.batching.saved import CELLS, SLOTS
from lamella.llama.reproducible import TILED_PRODUCTS
from tests.batching.conftest import GREEDY, FakeFront, OpenFront

PROMPTS = ("the quick brown fox jumps over", "the quick brown dog sleeps under", "once upon a time there was")
N_TOKENS = 60
FIRST = 500
"""Number of the first stream that goes on."""
ALIKE: dict[str, Any] = {"is_reproducible": True}
"""Tokens do not depend on what runs beside them."""
SHARED: dict[str, Any] = {"n_cells": 400}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reproducible engines set for their process is taken back: other tests start llama.cpp's own tools."""
    monkeypatch.setenv(TILED_PRODUCTS, "0")


def save(front: FakeFront, folder: Path) -> CacheSaved | Refused:
    front.tell(SaveCache(id=900, folder=str(folder)))
    found: CacheSaved | Refused = front.wait(lambda m: isinstance(m, CacheSaved | Refused) and m.id == 900)
    return found


def written(front: FakeFront, number: int) -> list[int]:
    """Tokens of a request so far."""
    return [t.token for m in list(front.told) if isinstance(m, Step) for t in m.tokens if t.id == number]


def begin(
    open_front: OpenFront, folder: Path, prompts: Sequence[str] = PROMPTS, **settings: Any
) -> dict[str, list[int]]:
    """Streams side by side, saved in the middle; what each has written by then."""
    with open_front(**settings) as front:
        numbers = {prompt: front.start(prompt, max_tokens=N_TOKENS) for prompt in prompts}
        front.wait(lambda _: all(len(written(front, n)) >= 8 for n in numbers.values()))
        saved = save(front, folder)
        assert isinstance(saved, CacheSaved)
        assert saved.n_bytes >= (folder / CELLS).stat().st_size > 0
        return {prompt: written(front, number)[:8] for prompt, number in numbers.items()}


def go_on(front: FakeFront, begun: dict[str, list[int]]) -> dict[str, list[int]]:
    """All that each stream has written in the end."""
    for number, (prompt, tokens) in enumerate(begun.items(), FIRST):
        front.tell(
            Generate(id=number, prompt=prompt, max_tokens=N_TOKENS, sampling=GREEDY, ignore_end=True, generated=tokens)
        )
    return {prompt: tokens + front.tokens_of(n) for n, (prompt, tokens) in enumerate(begun.items(), FIRST)}


@pytest.mark.parametrize(
    ("prompts", "settings"),
    [(PROMPTS, ALIKE), (PROMPTS[:1], SHARED)],
    ids=["cells of their own", "shared cells"],
)
def test_streams_go_on_with_what_was_computed_and_write_the_same(
    open_front: OpenFront, tmp_path: Path, prompts: Sequence[str], settings: dict[str, Any]
) -> None:
    with open_front(**settings) as front:
        expected = {prompt: front.write(prompt, max_tokens=N_TOKENS) for prompt in prompts}
    begun = begin(open_front, tmp_path, prompts, **settings)
    with open_front(**settings, cache_folder=str(tmp_path)) as front:
        assert front.loop.hello().n_taken_over > 0
        assert go_on(front, begun) == expected
        assert nothing_was_read(front, begun)


def nothing_was_read(front: FakeFront, begun: dict[str, list[int]]) -> bool:
    """Whether each stream found all but its last token, which was drawn and not computed."""
    ends = [front.end_of(number) for number in range(FIRST, FIRST + len(begun))]
    n_given = sum(end.prompt_tokens + len(tokens) - 1 for end, tokens in zip(ends, begun.values(), strict=True))
    status = front.loop.status()
    return status.n_cached_tokens == n_given and not status.n_prompt_tokens


def test_streams_that_share_cells_find_theirs_and_make_room_for_others(open_front: OpenFront, tmp_path: Path) -> None:
    begun = begin(open_front, tmp_path, **SHARED)
    with open_front(**SHARED, cache_folder=str(tmp_path)) as front:
        n_taken_over = front.loop.hello().n_taken_over
        assert n_taken_over == front.loop.status().cells_used
        assert {len(tokens) for tokens in go_on(front, begun).values()} == {N_TOKENS}
        assert nothing_was_read(front, begun)
        numbers = [front.start(f"{i} and more", max_tokens=70) for i in range(8)]
        assert all(front.end_of(number).generated_tokens == 70 for number in numbers)


def test_what_another_variant_computed_is_not_taken_by_those_who_want_one(
    open_front: OpenFront, tmp_path: Path
) -> None:
    with open_front(variant="int4") as front:
        expected = front.write(PROMPTS[0], max_tokens=N_TOKENS)
    begin(open_front, tmp_path)
    with open_front(cache_folder=str(tmp_path)) as front:
        assert front.loop.hello().n_taken_over > 0
        assert front.write(PROMPTS[0], max_tokens=N_TOKENS, variant="int4") == expected


def _cut(folder: Path) -> None:
    path = folder / CELLS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_slots(folder: Path) -> None:
    (folder / SLOTS).unlink()


def _broken_slots(folder: Path) -> None:
    (folder / SLOTS).write_bytes(b"\x93")


def _other_version(folder: Path) -> None:
    found = msgspec.msgpack.decode((folder / SLOTS).read_bytes())
    (folder / SLOTS).write_bytes(msgspec.msgpack.encode({**found, "version": 99}))


def _other_tokens(folder: Path) -> None:
    found = msgspec.msgpack.decode((folder / SLOTS).read_bytes())
    found["slots"][0]["tokens"].append(1)
    (folder / SLOTS).write_bytes(msgspec.msgpack.encode(found))


def _other_slots(folder: Path) -> None:
    found = msgspec.msgpack.decode((folder / SLOTS).read_bytes())
    found["slots"][0]["id"] = 99
    (folder / SLOTS).write_bytes(msgspec.msgpack.encode(found))


def _pipe_for_slots(folder: Path) -> None:
    (folder / SLOTS).unlink()
    os.mkfifo(folder / SLOTS)


@pytest.mark.parametrize(
    "spoil", [_cut, _no_slots, _pipe_for_slots, _broken_slots, _other_version, _other_tokens, _other_slots]
)
def test_what_cannot_be_used_is_computed_again(open_front: OpenFront, tmp_path: Path, spoil: Any) -> None:
    with open_front(**ALIKE) as front:
        expected = {prompt: front.write(prompt, max_tokens=N_TOKENS) for prompt in PROMPTS}
    begun = begin(open_front, tmp_path, **ALIKE)
    spoil(tmp_path)
    with open_front(**ALIKE, cache_folder=str(tmp_path)) as front:
        assert front.loop.hello().n_taken_over == 0
        assert go_on(front, begun) == expected


@pytest.mark.parametrize(
    ("settings", "is_taken_over"), [({"n_cells": 0}, False), ({"kv_type": "F32"}, False), ({"n_sequences": 1}, True)]
)
def test_a_cache_of_another_kind_is_computed_again_and_one_of_more_sequences_is_used(
    open_front: OpenFront, tmp_path: Path, settings: dict[str, Any], is_taken_over: bool
) -> None:
    begun = begin(open_front, tmp_path, **SHARED)
    with open_front(**{**SHARED, **settings}, cache_folder=str(tmp_path)) as front:
        assert (front.loop.hello().n_taken_over > 0) == is_taken_over
        assert {len(tokens) for tokens in go_on(front, begun).values()} == {N_TOKENS}
        assert nothing_was_read(front, begun) == is_taken_over


def test_a_cache_that_cannot_be_written_is_refused_and_the_engine_goes_on(front: FakeFront, tmp_path: Path) -> None:
    number = front.start(PROMPTS[0], max_tokens=N_TOKENS)
    refused = save(front, tmp_path / "missing")
    assert isinstance(refused, Refused)
    assert len(front.tokens_of(number)) == N_TOKENS
