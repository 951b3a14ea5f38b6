"""The open shards of a store: mapped once, prefaulted ahead of a switch, repacked where that is faster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lamella.core.model import TensorSpec
from lamella.core.precision import GGML_TYPES_BY_CODE
from lamella.llama.weights import MappedShard, RepackedShard, WeightState
from lamella.run.layouts import Layout


@dataclass(frozen=True, slots=True)
class ShardStates:
    """Where the weights of one shard point, in the two phases of a generation."""

    prompt: Mapping[str, WeightState]
    token: Mapping[str, WeightState]


class ShardPool:
    """Owns every shard that the engine has open.

    Only one thread may open or close shards at a time: the background thread while a variant is being prepared, the
    engine's otherwise (``LiveVariants`` sees to that).
    """

    def __init__(self, layouts: Mapping[str, Layout], repackable: frozenset[str]) -> None:
        """Make an empty pool.

        Args:
            layouts: by ggml type name.
            repackable: names of the weights that only matrix products read.
        """
        self._layouts = layouts
        self._repackable = repackable
        self._mapped: dict[str, MappedShard] = {}
        self._repacked: dict[str, RepackedShard] = {}

    def open(self, shard_id: str, path: Path, tensors: Mapping[str, TensorSpec]) -> ShardStates:
        """Map a shard, read its pages in, and make the repacked copies that its types call for.

        Args:
            tensors: the model's tensors by name, for their shapes.
        """
        mapped = self._mapped.get(shard_id)
        if mapped is None:
            mapped = self._mapped[shard_id] = MappedShard(path)
        to_repack = [n for n, s in mapped.states.items() if self._layout(n, s, tensors).repack]
        if to_repack and shard_id not in self._repacked:
            shapes = {n: tensors[n].shape for n in to_repack}
            self._repacked[shard_id] = RepackedShard(mapped, shapes)
        copies = self._repacked[shard_id].states if shard_id in self._repacked else {}
        stay = {n for n in copies if self._layout(n, mapped.states[n], tensors).prompt_from_mapped}
        if len(copies) < len(mapped.states) or stay:
            mapped.prefault()
        return ShardStates(
            prompt={n: s if n in stay else copies.get(n, s) for n, s in mapped.states.items()},
            token={n: copies.get(n, s) for n, s in mapped.states.items()},
        )

    def keep_only(self, shard_ids: Iterable[str]) -> None:
        """Close every other shard.  No weight may point into one of them."""
        kept = set(shard_ids)
        for shard_id in [i for i in self._repacked if i not in kept]:
            self._repacked.pop(shard_id).close()
        for shard_id in [i for i in self._mapped if i not in kept]:
            self._mapped.pop(shard_id).close()

    @property
    def mapped_bytes(self) -> int:
        """Size of all mapped shards: the most page cache they can take."""
        return sum(s.n_bytes for s in list(self._mapped.values()))  # a copy: the background thread may be adding

    @property
    def repacked_bytes(self) -> int:
        """Private memory of the repacked copies."""
        return sum(s.n_bytes for s in list(self._repacked.values()))

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for mapped in self._mapped.values():
                stack.callback(mapped.close)
            for repacked in self._repacked.values():
                stack.callback(repacked.close)
        self._mapped.clear()
        self._repacked.clear()

    def _layout(self, name: str, state: WeightState, tensors: Mapping[str, TensorSpec]) -> Layout:
        if name not in self._repackable or not tensors[name].is_matrix:
            return Layout()
        return self._layouts.get(GGML_TYPES_BY_CODE[state.type_code].name, Layout())
