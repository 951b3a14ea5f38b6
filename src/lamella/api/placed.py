"""Placements put to work: which node has which layers, and the variant that a placement is of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lamella.api.models import load_spec
from lamella.cluster.layers import COORDINATOR, LayersOf
from lamella.core.artifacts import Plan, ShardRef
from lamella.core.errors import InvalidRequest
from lamella.core.foreign import UNREADABLE
from lamella.core.input_files import read_file
from lamella.planning.cost import Choice, build_plan
from lamella.planning.request import Overhead, PlanRequest
from lamella.planning.uniform import OUTSIDE
from lamella.store.files import storage_errors
from lamella.store.store import Store

_LAYERS = re.compile(r"([^=]+)=([0-9]{1,9})(?:-([0-9]{1,9}))?")


class _Segment(msgspec.Struct):
    node: str
    first: int
    precisions: tuple[str, ...]


class _Placement(msgspec.Struct, tag_field="format", tag="lamella.placement"):
    coordinator: str
    segments: list[_Segment]


def parse_layers(text: str) -> list[LayersOf]:
    """``laptop=0-11,server=12-23``: nodes and their layers, from the first to the last.

    Raises:
        InvalidRequest: something else.
    """
    found = []
    for part in text.split(","):
        match = _LAYERS.fullmatch(part.strip())
        if match is None:
            raise InvalidRequest(f"'{part[:40]}' is not NODE=FIRST-LAST, as in laptop=0-11,server=12-23")
        node, first, last = match.groups()
        found.append(LayersOf(node, int(first), int(last or first) + 1))
    return found


def read_placed_layers(path: Path) -> list[LayersOf]:
    """Which node has which layers, by a placement that ``lamella cluster plan --json`` has printed.

    Raises:
        InvalidRequest: no such document.
        StorageFailed: it cannot be read.
    """
    document = _read(path)
    names = {document.coordinator: COORDINATOR}
    return [LayersOf(names.get(s.node, s.node), s.first, s.first + len(s.precisions)) for s in document.segments]


def placed_plan(model: str | Path, path: Path) -> Plan:
    """The precisions of a placement as a plan, to be built; embedding and head, which it says nothing of, in INT8.

    Args:
        model: a path, or ``smollm2``.
        path: of the placement.

    Raises:
        InvalidRequest: no such document, or for a model with other layers.
        UnsupportedTensor: rows of the model cannot be of a named type.
    """
    spec, segments = load_spec(model), _read(path).segments
    precisions = tuple(name for segment in segments for name in segment.precisions)
    if len(precisions) != spec.n_layers:
        raise InvalidRequest(f"{path} places {len(precisions)} layers, {spec.identity.name} has {spec.n_layers}")
    request = PlanRequest(spec, outside=OUTSIDE)
    return build_plan("placement", request, Overhead(), Choice(precisions, OUTSIDE))


def shards_of(store: Store, variants: Sequence[str] | None, layers: Sequence[LayersOf]) -> list[ShardRef]:
    """The shards of some layers, of all variants or of those named, each once."""
    labels = {f"layer {index}" for at in layers for index in range(at.first, at.end)}
    found = {
        shard.id: shard
        for variant in store.readable_variants()[0]
        if variants is None or variant.name in variants
        for shard in variant.shards
        if shard.label in labels
    }
    return list(found.values())


def _read(path: Path) -> _Placement:
    with storage_errors(path, "read"):
        data = read_file(path)
    try:
        return msgspec.json.decode(data, type=_Placement)
    except UNREADABLE as error:
        raise InvalidRequest(f"{path} is no placement: {error}") from None
