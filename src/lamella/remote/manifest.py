"""What the documents of a remote store may say.  Everything that leads to a path, a size or a line of text is checked.

``store.json`` and ``variant.json`` come from a machine that may be broken or hostile; they are read here and nowhere
else.  A reader of what comes out need not ask again: ids are SHA-256, labels are the layout's own, sizes are positive.
"""

from __future__ import annotations

from lamella.core.artifacts import Plan, Variant, from_json
from lamella.core.errors import ArtifactError, RemoteInvalid, StoreFormatError
from lamella.core.model import ModelIdentity, shard_labels
from lamella.store.founding import read_identity
from lamella.store.layout import check_sha256

MOST_STORE_BYTES = 1 << 20
MOST_VARIANT_BYTES = 64 << 20
"""A variant's document has about 200 bytes for each tensor and shard, so this is for some 300,000 of them."""

_MOST_NAME = 256


def parse_identity(data: bytes, source: str) -> ModelIdentity:
    """The model of a remote store.

    Raises:
        StoreFormatError: no ``store.json``, or one of a newer format.
        RemoteInvalid: hashes or names that can be none.
    """
    identity = read_identity(data, source)
    _check_identity(identity, source)
    return identity


def parse_variant(data: bytes, name: str, identity: ModelIdentity, source: str) -> Variant:
    """The variant that was asked for.

    Raises:
        RemoteInvalid: damaged, of another name or model, or with shards that can be none.
    """
    try:
        variant = from_json(Variant, data, source)
    except ArtifactError as error:
        raise RemoteInvalid(str(error)) from None
    if variant.name != name:
        raise RemoteInvalid(f"{source} describes another variant, {variant.name[:_MOST_NAME]!r}")
    _check_plan(variant.plan, identity, source)
    _check_shards(variant, source)
    return variant


def _check_plan(plan: Plan, identity: ModelIdentity, source: str) -> None:
    _check_identity(plan.model, source)
    if plan.model.structure != identity.structure:
        raise RemoteInvalid(f"{source} is a variant of another model than its store's ({identity.name})")
    if sorted(layer.layer for layer in plan.layers) != list(range(len(plan.layers))):
        raise RemoteInvalid(f"{source}: the plan's layers are not numbered from 0 to {len(plan.layers) - 1}")
    _check_text(plan.policy, f"{source}: policy")


def _check_shards(variant: Variant, source: str) -> None:
    labels = shard_labels(len(variant.plan.layers))
    if [shard.label for shard in variant.shards] != labels:
        raise RemoteInvalid(
            f"{source} names {len(variant.shards)} shards that are not those of a model of "
            f"{len(variant.plan.layers)} layers ({len(labels)}: {labels[0]}, layers, {labels[-2]}, {labels[-1]})"
        )
    sizes: dict[str, int] = {}
    for shard in variant.shards:
        _check_sha256(shard.id, f"{source}: shard id of {shard.label}")
        if shard.n_bytes <= 0 or sizes.setdefault(shard.id, shard.n_bytes) != shard.n_bytes:
            raise RemoteInvalid(f"{source}: {shard.label} cannot have {shard.n_bytes} bytes")


def _check_identity(identity: ModelIdentity, source: str) -> None:
    _check_sha256(identity.structure, f"{source}: structure")
    _check_sha256(identity.weights, f"{source}: weights")
    _check_text(identity.name, f"{source}: name")
    _check_text(identity.architecture, f"{source}: architecture")


def _check_sha256(text: str, what: str) -> None:
    try:
        check_sha256(text[:_MOST_NAME], what)
    except StoreFormatError as error:
        raise RemoteInvalid(str(error)) from None


def _check_text(text: str, what: str) -> None:
    """Names are shown in terminals, where control characters do things."""
    if len(text) > _MOST_NAME or not text.isprintable():
        raise RemoteInvalid(f"{what} is no name: {text[:_MOST_NAME]!r}")
