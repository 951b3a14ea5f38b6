"""The header of a shard file: a GGUF split file that is the same in every variant (docs/store-format.md, "Shards")."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.core.model import ShardGroup, TensorSpec, shard_groups
from lamella.llama.gguf import Header, ModelFile


def shard_header(source: ModelFile, group: ShardGroup, type_names: Sequence[str]) -> bytes:
    """Everything of a shard file that stands before its tensors' data.

    Args:
        type_names: ggml type of each tensor of the group.
    """
    with Header.empty() as header:
        if group.number == 0:
            with Header.open(source.paths[0]) as original:
                header.copy_metadata_from(original)
        header.set("split.no", group.number, "u16")
        header.set("split.count", n_shards(source), "u16")
        header.set("split.tensors.count", len(source.spec.tensors), "i32")
        return header.serialise(list[tuple[TensorSpec, str]](zip(group.tensors, type_names, strict=True)))


def n_shards(source: ModelFile) -> int:
    """Of every variant of the model."""
    return sum(1 for _ in shard_groups(source.spec))
