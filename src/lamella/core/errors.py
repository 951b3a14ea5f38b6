"""One tree of errors, each with a stable exit code.

    LamellaError                 1
    +-- InvalidRequest           2   the caller asked for something that has no meaning
    |   +-- RequestRefused             the engine says why it cannot do a request
    |   +-- ImpossibleObjectives       no variant can keep them; says which are the nearest that one can
    +-- ModelError               3   the model file cannot be used
    |   +-- NotGguf
    |   +-- TruncatedModel
    |   +-- UnsupportedTensor
    |   +-- InvalidWeights
    |   +-- HarmfulFile              reading it killed the process that read it first, or took too much
    +-- DoesNotFit               4   no plan fits the memory; says by how much and what would fit
    +-- ExceedsCeiling           4   a running engine would pass its memory ceiling; says by how much and what would fit
    +-- NoPlacement              4   no way to place the layers on the nodes; says what they need and what is there
    +-- ArtifactError            5   a measurement or plan file cannot be read, or belongs to another model
    +-- StoreError               6   the store cannot do it
    |   +-- StoreFormatError
    |   +-- StoreBusy
    |   +-- UnknownVariant
    |   +-- VariantExists
    |   +-- ShardDamaged
    |   +-- CannotRebuild
    |   +-- QuotaNotReached
    +-- StorageFailed            7   the file system refused: full, read-only, no permission
    +-- LibraryError             8   llama.cpp is missing, of an unknown version, or of another memory layout
    |   +-- LayoutMismatch
    +-- EngineFailed             9   llama.cpp could not load, allocate or decode
    |   +-- CacheFull                the KV cache has no room for these tokens; nothing of them was taken
    +-- RemoteFailed            10   another machine: not reachable, cut off, or it refuses
    |   +-- RemoteInvalid            what it sent is not what it promised; nothing of it was taken over
    |   +-- ClusterRefused           it cannot show that it belongs to the cluster, or we cannot
    +-- Unavailable             11   the server cannot take the request now
        +-- QueueFull                too many requests are open; says when to come again
        +-- Draining                 it is shutting down
        +-- EngineUnavailable        no engine can be brought up

130 is the exit code of an interrupt (Ctrl-C), 143 that of SIGTERM, as shells have them.

Messages state facts: what was asked, what is there, what would work.  They are turned into an exit
code once, in ``lamella.cli``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from lamella.core.artifacts import Plan

INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE = 130, 143


class LamellaError(Exception):
    """Base of every error that Lamella raises on purpose."""

    exit_code: ClassVar[int] = 1


class InvalidRequest(LamellaError):
    """An argument outside its range, an unknown name, two options that exclude each other."""

    exit_code = 2


class ModelError(LamellaError):
    """The model file cannot be used."""

    exit_code = 3


class NotGguf(ModelError):
    """The file is no GGUF file, or its header cannot be parsed."""


class TruncatedModel(ModelError):
    """The header promises more bytes than the file has."""


class UnsupportedTensor(ModelError):
    """A tensor type that cannot be read, or cannot be written for this row length."""


class InvalidWeights(ModelError):
    """A tensor holds NaN, infinity or values that the asked format cannot represent."""


class HarmfulFile(ModelError):
    """A child process that opened the file first died of it, or took more time or memory than it may."""


class DoesNotFit(LamellaError):
    """No plan is within the limit: the memory, or the bits that were asked.

    Attributes:
        needed_bytes: what the smallest plan needs; for a limit in bits, of the weights that it speaks of.
        budget_bytes: what there is, or what those weights may take.
        smallest_plan: that plan, for those who want to see where its bytes go.
    """

    exit_code = 4

    def __init__(self, message: str, *, needed_bytes: int, budget_bytes: int, smallest_plan: Plan) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        self.smallest_plan = smallest_plan


class ExceedsCeiling(LamellaError):
    """An engine may take so much memory and no more, and what was asked needs more.

    Attributes:
        needed_bytes: what the engine would take.
        ceiling_bytes: what it may take.
    """

    exit_code = 4

    def __init__(self, message: str, *, needed_bytes: int, ceiling_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.ceiling_bytes = ceiling_bytes


NO_CEILING_ON_DEVICES = "a memory ceiling counts host memory; it cannot be kept together with a device"
"""Said wherever both are asked for."""


class NoPlacement(LamellaError):
    """The layers cannot be placed on the nodes there are: memory, or the loss budget."""

    exit_code = 4


class ArtifactError(LamellaError):
    """A measurement or plan that cannot be read, is of a newer format, or describes another model."""

    exit_code = 5


class StoreError(LamellaError):
    """The store cannot do what was asked."""

    exit_code = 6


class StoreFormatError(StoreError):
    """The folder is no store, or one of a newer format."""


class StoreBusy(StoreError):
    """Another process holds the store in a way that excludes this operation."""


class UnknownVariant(StoreError):
    """The store has no variant of that name."""


class VariantExists(StoreError):
    """The name is taken by a variant with other contents."""


class ShardDamaged(StoreError):
    """A shard's bytes do not hash to its name, or the shard is missing."""


class CannotRebuild(StoreError):
    """A shard cannot be got back: its source is gone or changed, or it was tuned on text that the store has not; or it
    was pulled, and the store that it came from does not give it."""


class QuotaNotReached(StoreError):
    """All shards that may be dropped are dropped, and the store takes more than its quota still."""


class StorageFailed(LamellaError):
    """The file system refused: no space, no permission, read-only, or an I/O error."""

    exit_code = 7


class LibraryError(LamellaError):
    """llama.cpp could not be loaded, or its version is not one whose layout is known."""

    exit_code = 8


class LayoutMismatch(LibraryError):
    """``ggml_tensor`` in memory is not laid out as declared here; a live switch would corrupt memory."""


class EngineFailed(LamellaError):
    """llama.cpp reported a failure while loading, allocating or decoding."""

    exit_code = 9


class CacheFull(EngineFailed):
    """The KV cache has no room for the tokens; it holds what it held."""


class RemoteFailed(LamellaError):
    """Another machine could not be reached, cut the connection too often, or refused."""

    exit_code = 10


class RemoteInvalid(RemoteFailed):
    """What another machine sent is not what it promised, or what nobody should take.  Nothing of it was taken over."""


class ClusterRefused(RemoteFailed):
    """Somebody cannot show that he belongs to the cluster: another machine to us, or we to it."""


class RequestRefused(InvalidRequest):
    """The engine cannot do a request.

    Attributes:
        why: one of ``batching.messages.Refusal``.
    """

    def __init__(self, message: str, *, why: str) -> None:
        super().__init__(message)
        self.why = why


class ImpossibleObjectives(InvalidRequest):
    """No variant can keep what was promised, even where one request runs alone."""


class Unavailable(LamellaError):
    """The server cannot take the request now."""

    exit_code = 11


class QueueFull(Unavailable):
    """Too many requests are open.

    Attributes:
        retry_after_seconds: when a place is likely to be free.
    """

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Draining(Unavailable):
    """The server finishes what it has and takes nothing new."""


class EngineUnavailable(Unavailable):
    """The engine process died more often than it may be restarted, or cannot load the model."""
