"""What coordinator and node tell each other, each as one ``Channel`` message.

The coordinator dials for one purpose, which its first message says:

    Describe     -> Described                                     what the node is
    Probe        -> Ready, then Ping and Blob measurements        how fast the way is
    Begin        -> Begun, then Ping -> Pong as long as it lasts  a session: an RPC server of its own
    UseRpc       -> Ready, then llama.cpp's bytes                 a connection to the RPC server of a session
    Bring        -> Dial ..., Brought                             fill the shard cache
    Back         -> then HTTP's bytes                             the connection that a Dial asked for

A node that cannot answers ``Refused`` and hangs up.
"""

from __future__ import annotations

import msgspec

from lamella.core.artifacts import ShardRef
from lamella.core.model import ModelIdentity


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Asks for a ``NodeReport``; ``types`` are the ggml types to know speeds of, measured where they are not known."""

    types: list[str] = []


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Begins measurements of the link."""


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Begins a session, which lasts as long as this connection.

    Attributes:
        n_threads: for computing; 0 for the node's choice.
        shards: of the session's model, to be kept in the cache as long as it lasts; those that are there.
    """

    n_threads: int = 0
    shards: list[ShardRef] = []


class UseRpc(msgspec.Struct, frozen=True, tag="use-rpc"):
    """Asks for a connection to the RPC server of a session."""

    session: str


class Bring(msgspec.Struct, frozen=True, tag="bring"):
    """Asks the node to have shards in its cache.

    Attributes:
        model: whose they are.
        token: what the coordinator's store wants to hear of those who read it.
    """

    model: ModelIdentity
    shards: list[ShardRef]
    token: str


class Back(msgspec.Struct, frozen=True, tag="back"):
    """Is the connection that a ``Dial`` has asked for."""

    number: int


Purpose = Describe | Probe | Begin | UseRpc | Bring | Back


class Speed(msgspec.Struct, frozen=True):
    """Nanoseconds for each weight and token on a node's CPU: single tokens, and prompts in batches."""

    token: float
    prompt: float


class DeviceReport(msgspec.Struct, frozen=True):
    """A device of a node; see ``resources.devices.DeviceMemory``."""

    name: str
    kind: str
    description: str
    free_bytes: int
    total_bytes: int
    limited_by: str


class NodeReport(msgspec.Struct, frozen=True):
    """What a node is and has.

    Attributes:
        processor: what it calls itself.
        n_cores: that the node may use.
        memory_bytes, available_bytes: of the machine, or of the control group that is tighter.
        limited_by: which of them.
        devices: ggml's.
        speeds: by ggml type.
        attention: the same for each number of a query head and cell of the KV cache; None from nodes that do not say.
        llama_cpp: version of llama-cpp-python.
    """

    version: str
    llama_cpp: str
    processor: str
    n_cores: int
    memory_bytes: int
    available_bytes: int
    limited_by: str
    devices: list[DeviceReport]
    speeds: dict[str, Speed]
    attention: Speed | None = None


class Described(msgspec.Struct, frozen=True, tag="described"):
    """The answer to ``Describe``.

    Attributes:
        n_sessions: that run now.
        cached_bytes, n_cached: shards in the node's cache.
    """

    report: NodeReport
    n_sessions: int
    cached_bytes: int
    n_cached: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Go ahead."""


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The session has begun.

    Attributes:
        tensors: SHA-256 of the bytes of each tensor in the session's shards: what need not be sent.
    """

    session: str
    tensors: list[bytes]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The node cannot; ``message`` says why."""

    message: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Is anybody there?"""

    number: int


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """Yes.

    Attributes:
        n_starts: RPC servers that the session has started so far.
    """

    number: int
    n_starts: int = 1


class Blob(msgspec.Struct, frozen=True, tag="blob"):
    """Bytes of no meaning: ``up`` of them follow this message, and the node answers with ``down`` of them."""

    up: int
    down: int


class Dial(msgspec.Struct, frozen=True, tag="dial"):
    """The node has a request for the coordinator's store: dial ``Back(number)``."""

    number: int


class Brought(msgspec.Struct, frozen=True, tag="brought"):
    """The shards are there.

    Attributes:
        n_fetched: shards that were missing.
        moved_bytes: that came over the network for them.
    """

    n_fetched: int
    moved_bytes: int
