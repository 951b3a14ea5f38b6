"""The open shards of a store: mapped once, prefaulted ahead of a switch, repacked where that is faster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lamella.core.model import TensorSpec
from lamella.llama import gguf
from lamella.llama.device_shards import DeviceShard
from lamella.llama.gguf import TensorData
from lamella.llama.pages import give_back_what_is_freed, trim_heap
from lamella.llama.weights import MappedShard, RepackedShard, WeightState, type_name
from lamella.run.ceiling import Footprint
from lamella.run.layouts import Layout


@dataclass(frozen=True, slots=True)
class ShardStates:
    """Where the weights of one shard point, in the two phases of a generation."""

    prompt: Mapping[str, WeightState]
    token: Mapping[str, WeightState]


@dataclass(frozen=True, slots=True)
class Placement:
    """Which weights go to which device, by their names.  The others stay mapped on the host."""

    devices: Mapping[str, str]

    def device_of(self, weights: Iterable[str]) -> str:
        """The one device that the placed ones among the weights of a shard go to."""
        (device,) = {self.devices[name] for name in weights}  # a shard is one layer, or stands outside of them
        return device


class ShardPool:
    """Owns every shard that the engine has open.

    Only one thread may open or close shards at a time: the background thread while a variant is being prepared, the
    engine's otherwise (``LiveVariants`` sees to that).
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        repackable: frozenset[str],
        *,
        gives_back: bool = False,
        placement: Placement | None = None,
    ) -> None:
        """Make an empty pool.

        Args:
            layouts: by ggml type name.
            repackable: names of the weights that only matrix products read.
            gives_back: pages that are no longer used leave the page cache too, unless another process has them mapped,
                and freed copies the process; else kernel and C library decide how long they keep them.
            placement: devices that weights are copied to, in place of layouts; None for the CPU.
        """
        self._layouts = layouts
        self._placement = placement
        self._repackable = repackable
        self._mapped: dict[str, MappedShard] = {}
        self._repacked: dict[str, RepackedShard | DeviceShard] = {}
        self._footprints: dict[str, Footprint] = {}
        self._stored: dict[str, Mapping[str, TensorData]] = {}
        self._gives_back = False
        self.give_back(is_on=gives_back)

    def give_back(self, *, is_on: bool) -> None:
        """Whether what is closed from now on leaves page cache and process."""
        if is_on and not self._gives_back:
            give_back_what_is_freed()
        self._gives_back = is_on

    def stored(self, shard_id: str, path: Path) -> Mapping[str, TensorData]:
        """The tensors of a shard by its file's header, which is read once: a shard is named by its contents.

        Raises:
            ModelError: no readable GGUF file.
        """
        found = self._stored.get(shard_id)
        if found is None:
            found = self._stored[shard_id] = gguf.read_tensors(path)
        return found

    def footprint(self, shard_id: str, path: Path, tensors: Mapping[str, TensorSpec]) -> Footprint:
        """What a shard takes, or would take, by the header of its file.

        Args:
            tensors: the model's tensors by name, for their shapes.

        Raises:
            ModelError: no readable GGUF file.
        """
        found = self._footprints.get(shard_id)
        if found is None:
            stored = self.stored(shard_id, path)
            layouts = {n: self._layout(n, t.spec.type.name, tensors) for n, t in stored.items()}
            is_on_host = self._placement is None
            copied = sum(t.n_bytes for n, t in stored.items() if layouts[n].repack and is_on_host)
            unmapped = sum(t.n_bytes for n, t in stored.items() if layouts[n].is_copy_only)
            size = path.stat().st_size
            found = self._footprints[shard_id] = Footprint(size - unmapped, copied, size + copied)
        return found

    def open(self, shard_id: str, path: Path, tensors: Mapping[str, TensorSpec]) -> ShardStates:
        """Map a shard, read its pages in, and make the repacked copies that its types call for.

        Pages of weights that only their copies are read of are let go again.

        Args:
            tensors: the model's tensors by name, for their shapes.
        """
        self.footprint(shard_id, path, tensors)
        mapped = self._mapped.get(shard_id)
        if mapped is None:
            mapped = self._mapped[shard_id] = MappedShard(path, self.stored(shard_id, path).values())
        layouts = {n: self._layout(n, type_name(s), tensors) for n, s in mapped.states.items()}
        if shard_id not in self._repacked:
            mapped.prefault()
            self._repack(shard_id, mapped, {n: tensors[n].shape for n, layout in layouts.items() if layout.repack})
        copies = self._repacked[shard_id].states if shard_id in self._repacked else {}
        if idle := [n for n in copies if layouts[n].is_copy_only]:
            mapped.unmap(idle, from_cache=self._gives_back)
        return ShardStates(
            prompt={n: s if layouts[n].prompt_from_mapped else copies.get(n, s) for n, s in mapped.states.items()},
            token={n: copies.get(n, s) for n, s in mapped.states.items()},
        )

    def _repack(self, shard_id: str, mapped: MappedShard, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if shapes and self._placement is not None:
            self._repacked[shard_id] = DeviceShard(mapped, shapes, self._placement.device_of(shapes))
        elif shapes:
            self._repacked[shard_id] = RepackedShard(mapped, shapes)

    def mapped_states(self, shard_id: str) -> Mapping[str, WeightState]:
        """Where the weights of an open shard are without copies."""
        return self._mapped[shard_id].states

    def empty(self, shard_id: str) -> None:
        """Give back the memory of an open shard, copies included.

        Its mapping stays, so that weights that point there can be read still, slowly.  None may point at a copy.
        """
        self._free_copies(shard_id)
        mapped = self._mapped[shard_id]
        mapped.unmap(mapped.states, from_cache=self._gives_back)

    def close_shard(self, shard_id: str) -> None:
        """Close a shard.  No weight may point into it."""
        self._free_copies(shard_id)
        if shard_id in self._mapped:
            self._mapped.pop(shard_id).close(from_cache=self._gives_back)

    def _free_copies(self, shard_id: str) -> None:
        if shard_id in self._repacked:
            self._repacked.pop(shard_id).close()
            if self._gives_back:
                trim_heap()

    def keep_only(self, shard_ids: Iterable[str]) -> None:
        """Close every other shard.  No weight may point into one of them."""
        kept = set(shard_ids)
        for shard_id in [i for i in self._mapped if i not in kept]:
            self.close_shard(shard_id)

    @property
    def footprints(self) -> Mapping[str, Footprint]:
        """Of all shards that are open or were asked for."""
        return self._footprints

    @property
    def open_ids(self) -> frozenset[str]:
        """Ids of the shards that are open."""
        return frozenset(self._mapped)

    @property
    def mapped_bytes(self) -> int:
        """The most page cache that open shards take: pages that only their copies were read of are let go."""
        return sum(self._footprints[i].mapped_bytes for i in list(self._mapped))  # a copy: others may be adding

    @property
    def repacked_bytes(self) -> int:
        """Private memory of the repacked copies."""
        return 0 if self._placement else self._copied_bytes

    @property
    def device_bytes(self) -> int:
        """Memory of the device that weights take."""
        return self._copied_bytes if self._placement else 0

    @property
    def _copied_bytes(self) -> int:
        return sum(s.n_bytes for s in list(self._repacked.values()))

    def close(self) -> None:
        """Close all, in use or not."""
        with contextlib.ExitStack() as stack:
            for mapped in self._mapped.values():
                stack.callback(mapped.close)
            for repacked in self._repacked.values():
                stack.callback(repacked.close)
        self._mapped.clear()
        self._repacked.clear()

    def _layout(self, name: str, type_name: str, tensors: Mapping[str, TensorSpec]) -> Layout:
        if self._placement is not None:
            return Layout(repack=name in self._placement.devices)
        if name not in self._repackable or not tensors[name].is_matrix:
            return Layout()
        return self._layouts.get(type_name, Layout())
