"""RPC bytes through the filters: in any pieces, and back to what they were."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.cluster.rpc_stream import (
    GATHERED_BYTES,
    KNOWN_TENSOR,
    LEAST_KNOWN_BYTES,
    REQUEST_HEAD_BYTES,
    SET_TENSOR,
    TENSOR_HEAD_BYTES,
    Expand,
    Gather,
    Shorten,
    Slice,
)
from lamella.core.errors import RemoteInvalid


def request(command: int, body: bytes) -> bytes:
    return bytes([command]) + len(body).to_bytes(8, "little") + body


def set_tensor(data: bytes) -> bytes:
    return request(SET_TENSOR, b"h" * TENSOR_HEAD_BYTES + data)


SIZES = st.sampled_from(
    [0, 1, 8, TENSOR_HEAD_BYTES, LEAST_KNOWN_BYTES, 5000, GATHERED_BYTES, GATHERED_BYTES + 1, 300_000]
)
MESSAGES = st.lists(st.tuples(st.sampled_from([SET_TENSOR, 10, 8]), SIZES), max_size=6)


def cut(data: bytes, at: list[float]) -> list[bytes]:
    places = sorted({0, len(data), *(int(share * len(data)) for share in at)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(MESSAGES, st.lists(st.floats(0, 1), max_size=8))
def test_whatever_comes_in_whatever_pieces_leaves_as_it_was(messages: list[tuple[int, int]], at: list[float]) -> None:
    data = b"".join(request(command, bytes(size)) for command, size in messages)
    there, back = Shorten(frozenset([b"other"])), Expand(lambda _: None)
    out = b"".join(piece for part in cut(data, at) for sent in there(part) for piece in back(sent))
    assert out == data
    assert there.n_bytes == len(data)


@given(st.lists(st.integers(0, 200), max_size=10), st.lists(st.floats(0, 1), max_size=6))
def test_answers_pass_whole(sizes: list[int], at: list[float]) -> None:
    answers = [size.to_bytes(8, "little") + bytes(size) for size in sizes]
    gather = Gather(8)
    pieces = [piece for part in cut(b"".join(answers), at) for piece in gather(part)]
    assert pieces == answers


def test_a_short_message_leaves_in_one_piece_though_it_came_in_three() -> None:
    gather = Gather(REQUEST_HEAD_BYTES)
    whole = request(10, b"graph")
    assert [*gather(whole[:1]), *gather(whole[1:9])] == []
    assert [*gather(whole[9:])] == [whole]


def test_known_data_travels_as_its_digest(tmp_path: Path) -> None:
    data = bytes(range(256)) * 2000
    digest = hashlib.sha256(data).digest()
    (tmp_path / "shard").write_bytes(b"before" + data + b"after")
    there = Shorten(frozenset([digest]))
    sent = b"".join(there(set_tensor(data) + request(10, b"x")))
    assert sent[0] == KNOWN_TENSOR
    assert len(sent) < 400
    assert there.saved_bytes == len(data)
    back = Expand({digest: Slice(tmp_path / "shard", 6, len(data))}.get)
    assert b"".join(back(sent)) == set_tensor(data) + request(10, b"x")


def test_data_that_differs_in_one_bit_travels(tmp_path: Path) -> None:
    data = bytearray(range(256)) * 20
    there = Shorten(frozenset([hashlib.sha256(data).digest()]))
    data[777] ^= 1
    assert b"".join(there(set_tensor(bytes(data)))) == set_tensor(bytes(data))
    assert there.saved_bytes == 0


def test_a_digest_that_the_node_was_not_given_is_refused() -> None:
    sent = request(KNOWN_TENSOR, bytes(TENSOR_HEAD_BYTES + 32))
    with pytest.raises(RemoteInvalid, match="not given"):
        list(Expand(lambda _: None)(sent))


def test_a_cached_file_that_was_cut_short_is_an_error_and_no_short_message(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(bytes(100))
    digest = bytes(32)
    back = Expand({digest: Slice(tmp_path / "shard", 0, 5000)}.get)
    with pytest.raises(RemoteInvalid, match="shorter"):
        list(back(request(KNOWN_TENSOR, bytes(TENSOR_HEAD_BYTES) + digest)))


@pytest.mark.parametrize("size", [2000, 300_000])
def test_known_data_that_is_damaged_is_told_and_never_whole_at_the_rpc_server(tmp_path: Path, size: int) -> None:
    data = bytearray(size)
    digest = hashlib.sha256(data).digest()
    data[777] ^= 1
    (tmp_path / "shard").write_bytes(data)
    told: list[bytes] = []
    back = Expand({digest: Slice(tmp_path / "shard", 0, size)}.get, lambda found, why: told.append(found))
    left: list[bytes] = []
    with pytest.raises(RemoteInvalid, match="damaged"):
        left.extend(back(request(KNOWN_TENSOR, bytes(TENSOR_HEAD_BYTES) + digest)))
    assert told == [digest]
    assert 0 < len(b"".join(left)) < REQUEST_HEAD_BYTES + TENSOR_HEAD_BYTES + size
