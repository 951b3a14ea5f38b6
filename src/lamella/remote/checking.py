"""A shard's header against the plan, and a whole variant's structure against the store: what hashes cannot tell.

A shard hashes to its name whatever it holds, and the name comes from the other machine.  Before anything of a variant
becomes visible, every shard must hold exactly the tensors that the plan gives to its place, in the plan's types, and
all shapes together with the metadata must hash to the store's structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lamella.core.artifacts import Variant
from lamella.core.errors import RemoteInvalid
from lamella.core.model import ModelIdentity, TensorSpec, is_output
from lamella.llama.gguf import read_structure
from lamella.remote.headers import I32, U16, ShardHeader


def check_header(header: ShardHeader, number: int, variant: Variant) -> None:
    """Refuse a shard that is not what the plan puts at ``number``.

    Raises:
        RemoteInvalid: says what differs.
    """
    plan, label = variant.plan, variant.shards[number].label
    expected = {
        "split.no": (U16, number),
        "split.count": (U16, len(variant.shards)),
        "split.tensors.count": (I32, len(plan.tensors)),
    }
    for key, (kind, value) in expected.items():
        found_kind, found_value = header.values.get(key) or (None, None)
        if (found_kind, found_value) != (kind, value):
            raise _lie(label, f"{key} is {found_value!r} of type {found_kind}", f"{value} of type {kind}")
    planned = {name: kind for name, kind in plan.tensors.items() if shard_number(name, len(plan.layers)) == number}
    found = {tensor.name: tensor.type_name for tensor in header.tensors}
    for name in sorted(planned.keys() | found.keys()):
        if found.get(name) != planned.get(name):
            raise _lie(label, f"{name} is {found.get(name, 'missing')}", planned.get(name, "no such tensor there"))
    if list(found) != sorted(found):
        raise _lie(label, "its tensors do not stand by name", "sorted")


def check_structure(identity: ModelIdentity, metadata_file: Path, headers: Sequence[ShardHeader]) -> None:
    """Refuse shards that together are another model than the store's.

    Args:
        metadata_file: shard 0, whose header ``read_header`` has accepted.

    Raises:
        RemoteInvalid: hyper-parameters, tokenizer, names or shapes are not those of the model.
    """
    found = read_structure(metadata_file, [tensor for header in headers for tensor in header.tensors])
    if found != identity.structure:
        raise RemoteInvalid(
            f"the shards are not of {identity.name}: hyper-parameters, tokenizer and shapes hash to {found[:12]}, "
            f"the store's structure is {identity.structure[:12]}; nothing was taken over"
        )


def shard_number(tensor: str, n_layers: int) -> int:
    """In which shard a tensor stands (docs/store-format.md, "Shards"); -1 for a layer that the model does not have."""
    spec = TensorSpec(tensor, (), "F32")
    if spec.layer is not None:
        return spec.layer + 1 if spec.layer < n_layers else -1
    return n_layers + (2 if is_output(spec) else 1)


def _lie(label: str, said: str, expected: str) -> RemoteInvalid:
    return RemoteInvalid(f"the header of {label} does not fit the plan: {said}, not {expected}; nothing was taken over")
