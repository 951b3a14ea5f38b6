"""What the front is told when it starts."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import InvalidRequest
from lamella.core.input_files import check_file
from lamella.serving.keys import KeyRing

if TYPE_CHECKING:
    from lamella.serving.nodes import ClusterState, NodeFigures

DEFAULT_PORT = 8080


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may ask for; more is refused, not cut.

    Attributes:
        body_bytes: of its body.
        prompt_tokens: of one prompt; None for what the context holds.
        output_tokens: of one choice; None for what the context holds.
        n_choices: prompts times ``n``.
        n_inputs: texts of one embedding request.
    """

    body_bytes: int = 8 << 20
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    n_choices: int = 128
    n_inputs: int = 2048

    def __post_init__(self) -> None:
        said = {"prompt": self.prompt_tokens, "answer": self.output_tokens}
        if less := {what: n for what, n in said.items() if n is not None and n < 1}:
            what, n = min(less.items())
            raise InvalidRequest(f"the most tokens of one {what} must be at least 1, not {n}")


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """How the server meets the world.

    Attributes:
        name: of the model, in lists and answers; "" for what its file calls itself.
        host, port: where it listens; port 0 takes a free one.
        keys: who may ask; without any, everybody.
        aliases: further names of the model (clients often have one built in).
        limits: for one request.
        cors_origins: web pages whose scripts may ask; ``*`` for all.
        certificate, private_key: PEM files for TLS; both or none.
        drain_seconds: how long running requests may take at shutdown before they are cut off.
        keep_alive_seconds: a stream that was silent for so long (its request waits, or its prompt is long) says that it
            lives, at the latest after twice that time: proxies cut what seems dead, many after 60 seconds.
        dashboard: whether there is a page at ``/`` (docs/dashboard.md).
        nodes: says how the machines are that compute layers for this server; None where there are none.
        cluster: says which machine has which layers, and how a change of that goes; None for one machine.
        access_log: one line a request, on the error stream.  It costs time that the model could use.

    Raises:
        InvalidRequest: values that have no meaning.
    """

    name: str = ""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    keys: KeyRing = field(default_factory=KeyRing)
    aliases: tuple[str, ...] = ()
    limits: Limits = Limits()
    cors_origins: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    drain_seconds: float = 30.0
    keep_alive_seconds: float = 10.0
    dashboard: bool = True
    access_log: bool = False
    nodes: Callable[[], Sequence[NodeFigures]] | None = None
    cluster: Callable[[], ClusterState] | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise InvalidRequest("TLS needs both a certificate and its private key")
        if not all(name.isprintable() for name in (self.name, *self.aliases)):
            raise InvalidRequest("names of the model are made of printable characters")
        if self.drain_seconds < 0:
            raise InvalidRequest(f"running requests may take 0 seconds or more at shutdown, not {self.drain_seconds:g}")

    def check_certificate(self) -> None:
        """Try to load certificate and key: what is wrong with them is said before anything is made ready.

        Raises:
            InvalidRequest: they cannot be read, or do not belong together.
        """
        if self.certificate is None:
            return
        try:
            for path in filter(None, (self.certificate, self.private_key)):
                check_file(path)
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.private_key)
        except OSError as error:  # ssl.SSLError is one
            raise InvalidRequest(f"cannot use {self.certificate} with {self.private_key}: {error}") from None

    @property
    def scheme(self) -> str:
        """``https`` with a certificate, else ``http``."""
        return "https" if self.certificate else "http"
