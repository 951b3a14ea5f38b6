"""The reader of untrusted headers: it refuses or reads, whatever the bytes, and what it reads ggml reads alike."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lamella.core.errors import RemoteInvalid
from lamella.llama.gguf import Header, read_tensors
from lamella.remote.headers import read_header
from lamella.store.store import Store

N_TRIES = 200


def test_both_readers_agree_on_every_shard(origin: Store) -> None:
    for shard in origin.variant("mixed").shards:
        path = origin.shard_path(shard.id)
        header = read_header(path, shard.label)
        assert list(header.tensors) == [tensor.spec for tensor in read_tensors(path).values()]
        with Header.open(path) as theirs:
            values = {key: theirs.scalar(key_id) for key_id, key in theirs.keys()}
        mine = {key: value[1] for key, value in header.values.items() if value is not None}
        assert mine == {key: value for key, value in values.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("number", [0, 2])
def test_mutated_headers_are_refused_or_well_formed_for_ggml(origin: Store, tmp_path: Path, number: int) -> None:
    data = origin.shard_path(origin.variant("mixed").shards[number].id).read_bytes()
    chance, path, n_accepted = random.Random(number), tmp_path / "shard", 0
    for _ in range(N_TRIES):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            changed[chance.randrange(min(len(data), 2000))] = chance.choice(
                (0, 1, 9, 0x7F, 0xFF, chance.randrange(256))
            )
        path.write_bytes(changed)
        try:
            read_header(path, "mutated")
        except RemoteInvalid:
            continue
        n_accepted += 1
        Header.open(path).close()  # raises where ggml cannot parse it
        read_tensors(path)
    assert 0 < n_accepted < N_TRIES


@pytest.mark.parametrize("n_bytes", [0, 1, 23, 24, 40, 200])
def test_a_header_cut_off_anywhere_is_refused(origin: Store, tmp_path: Path, n_bytes: int) -> None:
    (tmp_path / "shard").write_bytes(origin.shard_path(origin.variant("mixed").shards[2].id).read_bytes()[:n_bytes])
    with pytest.raises(RemoteInvalid, match="ends inside its"):
        read_header(tmp_path / "shard", "cut")
