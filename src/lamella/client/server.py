"""One server, and what can be asked of it.  ``/v1`` is OpenAI's API, so chats work with any such server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import msgspec

from lamella.client.answers import StreamedAnswer, answer_of
from lamella.client.refusals import refusal
from lamella.core.closing import Closing
from lamella.core.errors import InvalidRequest, LamellaError, QueueFull, RemoteFailed, RemoteInvalid
from lamella.version import __version__

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 300.0
"""Lamella's servers are never silent for so long within an answer; others may be."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a full server is asked again.

    Attributes:
        seconds: all waits together; what would take longer is not waited for.
        on_wait: told why and how many seconds before each wait.
        sleep: waits.
    """

    seconds: float = 120.0
    on_wait: Callable[[str, float], None] = lambda _why, _seconds: None
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class ServedVariant:
    """A variant of the server's model; ``is_running`` is None where the server does not tell this key."""

    name: str
    is_running: bool | None


class _Model(msgspec.Struct):
    id: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Variant(msgspec.Struct):
    name: str
    running: bool


class _Variants(msgspec.Struct):
    variants: list[_Variant]


@dataclass(frozen=True, slots=True)
class SwitchDone:
    """A switch on the server, in its own words; seconds."""

    before: str
    after: str
    n_shards: int
    n_weights: int
    stall_seconds: float
    prepare_seconds: float


class ServerClient(Closing):
    """Requests to one server.  Safe to use from several threads.

    Attributes:
        url: without ``/v1`` and a final slash.
    """

    def __init__(self, url: str, key: str | None = None, patience: Patience | None = None) -> None:
        """Nothing is sent yet.

        Raises:
            InvalidRequest: no http or https URL, or a key that no header can carry.
        """
        self.url = _checked_url(url)
        self._has_key, self._patience = bool(key), patience or Patience()
        headers = {"User-Agent": f"lamella/{__version__}"}
        if key:
            headers["Authorization"] = f"Bearer {_checked_key(key)}"
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def close(self) -> None:
        self._client.close()

    def models(self) -> list[str]:
        """Names that a request may give, the model's own first.

        Raises:
            LamellaError: not reached, refused, or no such server.
        """
        listed = self._ask_for(_Models, "GET", "/v1/models")
        names = [model.id for model in listed.data if model.id]
        if not names:
            raise RemoteInvalid(f"{self.url} lists no model")
        return names

    def variants(self) -> list[ServedVariant]:
        """What can be switched to.  A user's key sees names only.

        Raises:
            LamellaError: as ``models``.
        """
        try:
            found = self._ask_for(_Variants, "GET", "/admin/variants").variants
        except (InvalidRequest, RemoteFailed):  # not for this key, or no server of ours
            names = self.models()
            prefix = f"{names[0]}@"
            return [ServedVariant(name.removeprefix(prefix), None) for name in names if name.startswith(prefix)]
        return [ServedVariant(variant.name, variant.running) for variant in found]

    def switch(self, variant: str) -> SwitchDone:
        """Run at another variant, for all clients; returns when it runs.  Needs an admin's key.

        Raises:
            InvalidRequest: there is no such variant; the others are named.
            RemoteFailed: not allowed, or it failed.
            RemoteInvalid: the answer does not say how it went.
        """
        return self._ask_for(SwitchDone, "POST", "/admin/switch", {"variant": variant})

    def chat(self, messages: Sequence[Mapping[str, str]], model: str = "", **fields: Any) -> StreamedAnswer:
        """An answer that streams; sent when its first piece is asked for.

        Args:
            fields: OpenAI's and Lamella's (docs/api.md); None leaves one out.
        """
        asked = {"model": model, "messages": list(messages), **fields}
        body = {name: value for name, value in asked.items() if value is not None}
        return StreamedAnswer(self._patiently({**body, "stream": True, "stream_options": {"include_usage": True}}))

    @contextlib.contextmanager
    def _patiently(self, body: Mapping[str, Any]) -> Iterator[httpx.Response]:
        """A stream that has begun; while the server is full, when it says to come again.

        Raises:
            QueueFull: it stays full longer than ``Patience`` allows.
        """
        waited = 0.0
        while True:
            try:
                with self._request("POST", "/v1/chat/completions", body) as response:
                    yield response
                    return
            except QueueFull as full:
                seconds = max(full.retry_after_seconds, 1.0)
                if waited + seconds > self._patience.seconds:
                    raise
                self._patience.on_wait(str(full), seconds)
            self._patience.sleep(seconds)
            waited += seconds

    def _ask_for(self, kind: type[T], method: str, path: str, body: Mapping[str, Any] | None = None) -> T:
        with self._request(method, path, body) as response:
            response.read()
            return answer_of(response, kind)

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> Iterator[httpx.Response]:
        """An answer with status 200, not read.

        Raises:
            LamellaError: any other, or none.
        """
        try:
            with self._client.stream(method, path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise refusal(response, has_key=self._has_key)
                yield response
        except httpx.HTTPError as error:
            raise self._in_words(error) from None

    def _in_words(self, error: httpx.HTTPError) -> LamellaError:
        said = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return RemoteFailed(f"no server answers at {self.url}: {said}; `lamella serve STORE` starts one")
        if isinstance(error, httpx.ReadTimeout):
            return RemoteFailed(f"{self.url} said nothing for {SILENCE_SECONDS:g} s")
        return RemoteFailed(f"the connection to {self.url} broke: {said}")


def _checked_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"'{text}' is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise InvalidRequest(f"'{text}' is no server's URL, such as http://127.0.0.1:8080")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def _checked_key(key: str) -> str:
    if not all("!" <= character <= "~" for character in key):
        raise InvalidRequest("an API key is made of printable ASCII characters without spaces")
    return key
