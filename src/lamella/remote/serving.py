"""A store as a read-only web application: what ``lamella pull`` reads, and nothing else.

    with StoreServer(Store.open(Path("model.store")), "0.0.0.0", 8090, token="...") as server:
        server.run()

Three kinds of files are served, by the strict names of ``store.layout``: ``store.json``, ``variants/NAME/variant.json``
and ``shards/ab/HASH.gguf``.  ``GET /`` lists the variants.  Anything else is 404, whatever stands in the folder.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lamella.core.closing import Closing
from lamella.core.errors import InvalidRequest, LamellaError, StoreFormatError
from lamella.core.listening import listen
from lamella.core.units import format_bytes
from lamella.remote.web import check_token
from lamella.store.layout import Layout
from lamella.store.store import Store
from lamella.version import __version__

LISTING_FORMAT = "lamella.listing"
LISTING_VERSION = 1
DEFAULT_PORT = 8090


def store_app(store: Store, token: str | None = None) -> Starlette:
    """The application.

    Args:
        token: what every request must carry as ``Authorization: Bearer TOKEN``; None lets everybody read.
    """
    layout = Layout(store.path)

    def listing(_: Request) -> Response:
        return Response(_listing(store), media_type="application/json")

    def document(_: Request) -> Response:
        return _file(layout, layout.document, "application/json")

    def variant(request: Request) -> Response:
        try:
            path = layout.variant_document(request.path_params["name"])
        except InvalidRequest:
            raise HTTPException(404) from None
        return _file(layout, path, "application/json")

    def shard(request: Request) -> Response:
        shard_id = request.path_params["file"].removesuffix(".gguf")
        try:
            path = layout.shard(shard_id)
        except StoreFormatError:
            raise HTTPException(404) from None
        if (path.parent.name, path.name) != (request.path_params["folder"], request.path_params["file"]):
            raise HTTPException(404)
        return _file(layout, path, "application/octet-stream", etag=shard_id)

    routes = [
        Route("/", listing),
        Route("/store.json", document),
        Route("/variants/{name}/variant.json", variant),
        Route("/shards/{folder}/{file}", shard),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, token=token)] if token else [],
        exception_handlers={LamellaError: _refused},
    )


class StoreServer(Closing):
    """A listening socket for a store; requests are answered while ``run`` runs.

    Attributes:
        url: where it can be reached; of 0.0.0.0, this machine's name.
        is_local: whether only this machine reaches it.
    """

    def __init__(
        self, store: Store, host: str = "127.0.0.1", port: int = DEFAULT_PORT, token: str | None = None
    ) -> None:
        """Take the port; 0 takes a free one.

        Raises:
            InvalidRequest: the address is taken, or not of this machine; or the token cannot be one.
        """
        self._store, self._app = store, store_app(store, check_token(token) if token else None)
        self._listener = listen(host, port)
        address = ipaddress.ip_address(self._listener.getsockname()[0])
        self.is_local = address.is_loopback
        shown = socket.gethostname() if address.is_unspecified else f"[{address}]" if address.version == 6 else address
        self.url = f"http://{shown}:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._app, log_level="warning", ws="none", lifespan="off", server_header=False, http="h11"
        )
        self._server = uvicorn.Server(config)

    @property
    def description(self) -> str:
        """One line about what is served."""
        variants = self._store.readable_variants()[0]
        shards = {shard.id: shard.n_bytes for variant in variants for shard in variant.shards}
        return f"{self._store.identity.name}: {len(variants)} variants, {format_bytes(sum(shards.values()))}"

    def run(self) -> None:
        """Answer requests until Ctrl-C (``KeyboardInterrupt``), or until ``stop`` is called from another thread."""
        self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """End ``run``."""
        self._server.should_exit = True

    def close(self) -> None:
        self._listener.close()


class _Guard:
    """Lets through who knows the token; says nothing to others, and takes as long for a near miss as for a far one."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._knows(scope):
            answer = PlainTextResponse("unauthorized", 401, headers={"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        said = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(said, self._expected)


def _file(layout: Layout, path: Path, media_type: str, etag: str = "") -> Response:
    """A file of the store, or ranges of it; it may go while it is asked for, and a link out of the store is none."""
    if not path.is_file() or not layout.is_inside(path):
        raise HTTPException(404)
    return FileResponse(path, media_type=media_type, headers={"ETag": f'"{etag}"'} if etag else None)


def _listing(store: Store) -> bytes:
    variants = [
        {"name": v.name, "bytes": v.n_bytes, "bits_per_weight": v.plan.bits_per_weight}
        for v in store.readable_variants()[0]
    ]
    return msgspec.json.encode(
        {
            "format": LISTING_FORMAT,
            "format_version": LISTING_VERSION,
            "tool_version": __version__,
            "model": store.identity,
            "variants": variants,
        }
    )


def _refused(_: Request, error: Exception) -> Response:
    """Facts of the file system stay on this machine; whoever asks learns that it failed."""
    return PlainTextResponse(f"{type(error).__name__}", 500)
