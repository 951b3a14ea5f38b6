"""A store behind a URL, be it ``lamella serve-store`` or any server of static files.

    with RemoteStore("http://host:8090") as remote:
        variant = remote.variant("int4")
        data = b"".join(remote.fetch(variant.shards[0].id, variant.shards[0].n_bytes))

What ``fetch`` yields is not verified: whoever keeps it compares the SHA-256 (``fetching``).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator

import httpx
import msgspec

from lamella.core.artifacts import Variant
from lamella.core.closing import Closing
from lamella.core.errors import (
    InvalidRequest,
    RemoteFailed,
    RemoteInvalid,
    StoreError,
    StoreFormatError,
    UnknownVariant,
)
from lamella.core.foreign import UNREADABLE
from lamella.core.model import ModelIdentity
from lamella.remote.manifest import MOST_STORE_BYTES, MOST_VARIANT_BYTES, parse_identity, parse_variant
from lamella.remote.web import ConnectionCut, Web, WebOptions
from lamella.store.layout import check_sha256, check_variant_name

_MOST_CUTS = 1000  # of one shard, however much each connection brought


class RemoteChanged(RemoteFailed):
    """The server's file became another one while it was fetched."""


class RemoteStore(Closing):
    """A store that can be read over HTTP.  Safe to use from several threads.

    Attributes:
        web: how it is spoken to.
    """

    def __init__(self, url: str, token: str | None = None, options: WebOptions | None = None) -> None:
        """Nothing is sent yet.

        Raises:
            InvalidRequest: no http or https URL.
        """
        self.web = Web(url, token, options)
        self._counting = threading.Lock()
        self._moved_bytes = 0

    def close(self) -> None:
        self.web.close()

    @property
    def url(self) -> str:
        return self.web.url

    @property
    def name(self) -> str:
        """What it is called as a source of shards (``store.fetching.ShardSource``)."""
        return self.url

    @property
    def moved_bytes(self) -> int:
        """Bytes of shards that arrived so far, those that had to be thrown away included."""
        return self._moved_bytes

    @functools.cached_property
    def identity(self) -> ModelIdentity:
        """The one model that it holds.

        Raises:
            StoreFormatError: there is no store at that URL, or one of a newer format.
            RemoteFailed: not reached, or refused.
        """
        data = self.web.body("store.json", MOST_STORE_BYTES)
        if data is None:
            raise StoreFormatError(f"{self.url} is no store: it has no store.json")
        return parse_identity(data, f"{self.url}/store.json")

    def variant_names(self) -> tuple[str, ...]:
        """Names of all variants, as ``lamella serve-store`` lists them; a server of static files does not.

        Raises:
            RemoteFailed: there is no such list.
        """
        data = self.web.body("", MOST_STORE_BYTES)
        try:
            listed = msgspec.json.decode(data or b"", type=_Listing)
        except UNREADABLE:
            raise RemoteFailed(
                f"{self.url} does not list its variants (lamella serve-store does); name one: {self.url}@VARIANT"
            ) from None
        return tuple(check_variant_name(entry.name) for entry in listed.variants)

    def only_variant(self) -> str:
        """The name of the one variant there is.

        Raises:
            InvalidRequest: there are several, or none; lists them.
            RemoteFailed: the server does not list its variants.
        """
        names = self.variant_names()
        if len(names) != 1:
            raise InvalidRequest(f"name a variant, as in {self.url}@VARIANT; there are: {', '.join(names) or 'none'}")
        return names[0]

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            StoreFormatError: there is no store at that URL.
            UnknownVariant: there is none.
            RemoteInvalid: its document is damaged, too large, or says what it may not.
            RemoteFailed: not reached, or refused.
        """
        path, identity = variant_path(name), self.identity
        data = self.web.body(path, MOST_VARIANT_BYTES)
        if data is None:
            raise UnknownVariant(f"{self.url} has no variant '{name}'{self._there()}")
        return parse_variant(data, name, identity, f"{self.url}/{path}")

    def check(self, shard_id: str, n_bytes: int) -> None:
        """Ask whether the server has the shard; a request without a body.

        Raises:
            StoreError: it has not, or one of another size.
            RemoteFailed: not reached, or refused.
        """

        def ask() -> str | None:
            with self.web.request("HEAD", shard_path(shard_id)) as response:
                if response.status_code == 404:
                    raise StoreError(f"{self.url} has no shard {shard_id}")
                self.web.expect(response, 200)
                said = response.headers.get("Content-Length")
                return None if said is None else str(said)

        found = self.web.patiently(ask)
        if found != str(n_bytes):
            raise StoreError(f"{self.url}: shard {shard_id} has {found or 'unknown'} bytes instead of {n_bytes}")

    def fetch(self, shard_id: str, n_bytes: int, start: int = 0) -> Iterator[bytes]:
        """A shard's bytes from ``start`` to its end, in order, across as many connections as that takes.

        A server without ranges is asked for the whole shard again, and what is known already is skipped.

        Args:
            n_bytes: size of the shard; no byte beyond it is yielded.

        Raises:
            RemoteChanged: after a cut the server has another file under that name: begin anew.
            RemoteInvalid: the server's file has another size.
            RemoteFailed: cut too often without a new byte, refused, or not there.
        """
        position, version, n_failures = start, "", 0
        if position == n_bytes:
            return  # nothing to ask for; a range behind the end is an error (416)
        for _ in range(_MOST_CUTS):
            before = position
            try:
                with self.web.request("GET", shard_path(shard_id), _asking_from(position, version)) as response:
                    version = self._same_version(response, version)
                    for data in self._bytes_from(response, position, n_bytes):
                        position += len(data)
                        yield data
                if position < n_bytes:
                    raise ConnectionCut(f"{response.url} ended at byte {position} of {n_bytes}")
                return
            except ConnectionCut as cut:
                n_failures = 1 if position > before else n_failures + 1
                if n_failures >= self.web.options.n_tries:
                    raise RemoteFailed(f"gave up after {n_failures} attempts: {cut}") from None
                self.web.pause(n_failures)
        raise RemoteFailed(f"{self.url}/{shard_path(shard_id)} was cut {_MOST_CUTS} times")

    def _same_version(self, response: httpx.Response, before: str) -> str:
        self.web.expect(response, 200, 206)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if before and version != before:
            raise RemoteChanged(f"{response.url} was replaced by another file while it was fetched")
        return str(version)

    def _bytes_from(self, response: httpx.Response, position: int, n_bytes: int) -> Iterator[bytes]:
        """What the answer holds from ``position`` on."""
        at = _first_byte(response, position, n_bytes)
        for data in response.iter_raw():
            with self._counting:
                self._moved_bytes += len(data)
            at += len(data)
            if at > n_bytes:
                raise RemoteInvalid(f"{response.url} has more than the {n_bytes} bytes that its variant says")
            if at > position:
                yield data[max(0, len(data) - (at - position)) :]

    def _there(self) -> str:
        try:
            names = self.variant_names()
        except RemoteFailed:
            return ""
        return f"; there are: {', '.join(names) or 'none'}"


class _Named(msgspec.Struct):
    name: str


class _Listing(msgspec.Struct):
    variants: list[_Named]


def shard_path(shard_id: str) -> str:
    """Where a store has that shard, for a URL."""
    return f"shards/{shard_id[:2]}/{check_sha256(shard_id, 'shard id')}.gguf"


def variant_path(name: str) -> str:
    """Where a store has that variant's document, for a URL."""
    return f"variants/{check_variant_name(name)}/variant.json"


def _asking_from(position: int, version: str) -> dict[str, str]:
    if not position:
        return {}
    usable = version and not version.startswith("W/")  # a weak ETag promises no equal bytes (RFC 9110, 13.1.5)
    return {"Range": f"bytes={position}-", **({"If-Range": version} if usable else {})}


def _first_byte(response: httpx.Response, position: int, n_bytes: int) -> int:
    """Which byte of the file the answer begins with.

    Raises:
        RemoteInvalid: the answer is of a file of another size, or of a range that was not asked for.
    """
    if response.status_code == 206:
        said = response.headers.get("Content-Range", "")
        if said.rpartition("/")[2] not in (str(n_bytes), "*") or not said.startswith(f"bytes {position}-"):
            raise RemoteInvalid(f"{response.url} sent range {said!r} instead of {position}- of {n_bytes} bytes")
        return position
    length = response.headers.get("Content-Length")
    if length is not None and length != str(n_bytes):
        raise RemoteInvalid(f"{response.url} has {length} bytes instead of the {n_bytes} that its variant says")
    return 0
