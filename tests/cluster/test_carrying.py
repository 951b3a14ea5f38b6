"""What it takes to have the KV cache go along, and when that is worth it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.api.served_cluster import models_of
from lamella.batching.settings import EngineSettings
from lamella.cluster.carrying import Move, is_worth_carrying, seconds_to_carry
from lamella.cluster.layers import LayersOf
from lamella.cluster.messages import Speed
from lamella.cluster.placing import MachineNow, ServedModel, seconds_of
from lamella.planning.placement import Link, Request
from lamella.store.store import Store

HERE, APART = (LayersOf("coordinator", 0, 3),), (LayersOf("coordinator", 0, 1), LayersOf("one", 1, 3))
LINK = Link(1e6, 0.001)
N_CELLS = 500


@pytest.fixture
def model(store: Store) -> ServedModel:
    return models_of(store, EngineSettings(store=str(store.path), n_ctx=128, n_sequences=1))[0]


def machines(model: ServedModel, link: Link = LINK) -> dict[str, MachineNow]:
    speeds = {kind: Speed(0.1, 0.05) for kind in model.types}
    return {"coordinator": MachineNow(1 << 40, speeds), "one": MachineNow(1 << 40, speeds, link)}


def test_each_layer_on_another_machine_crosses_its_link_with_keys_and_values(model: ServedModel) -> None:
    assert model.cell_bytes == (2 * 2 * 256,) * 3  # keys and values of 256 numbers in F16
    there = 2 * (2 * 0.001 + N_CELLS * 1024 / 1e6)
    found = machines(model)
    assert seconds_to_carry(Move(model, found, HERE, HERE), N_CELLS) == 0
    assert seconds_to_carry(Move(model, found, HERE, APART), N_CELLS) == pytest.approx(there)
    assert seconds_to_carry(Move(model, found, APART, HERE), N_CELLS) == pytest.approx(there)
    assert seconds_to_carry(Move(model, found, APART, APART), N_CELLS) == pytest.approx(2 * there)


def test_cells_are_carried_where_that_is_sooner_than_computing_them(model: ServedModel) -> None:
    again = seconds_of(model, machines(model), HERE, Request(N_CELLS, 1))
    assert again is not None
    n_bytes = 2 * N_CELLS * 1024  # of two layers
    for factor, expected in ((0.99, False), (1.01, True)):
        found = machines(model, Link(factor * n_bytes / again, 0.0))
        assert is_worth_carrying(Move(model, found, APART, HERE), N_CELLS) is expected


def test_nothing_is_carried_where_nothing_is_or_its_place_is_away(model: ServedModel) -> None:
    found = machines(model, replace(LINK, bytes_per_second=1e12))
    assert not is_worth_carrying(Move(model, found, HERE, HERE), 0)
    del found["one"]
    assert not is_worth_carrying(Move(model, found, HERE, APART), N_CELLS)
    assert is_worth_carrying(Move(model, found, HERE, HERE), N_CELLS)
