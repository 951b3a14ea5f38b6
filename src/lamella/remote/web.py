"""One way of speaking HTTP with a store on another machine.

Nothing is ever decompressed: identity is asked for, and an answer in any other encoding is refused, so no answer is
longer than the bytes that arrive.  Redirects are few, to http and https only, and never from https to http.  The token
goes to the host of the URL alone: httpx takes it off a request that is redirected elsewhere.  Whatever breaks a
connection becomes ``ConnectionCut``, which callers may try again.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx

from lamella.core.closing import Closing
from lamella.core.errors import INTERRUPTED_EXIT_CODE, InvalidRequest, RemoteFailed, RemoteInvalid
from lamella.core.units import format_bytes
from lamella.version import __version__

Content = bytes | Callable[[], Iterator[bytes]]
"""A request's body; where it is made piece by piece, a function that begins anew, since a request may be repeated."""

T = TypeVar("T")
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


class ConnectionCut(RemoteFailed):
    """The connection failed, or the server is busy: the same request may succeed a little later."""


class Stopped(RemoteFailed):
    """``Web.stop`` was called while this request ran."""

    exit_code = INTERRUPTED_EXIT_CODE


@dataclass(frozen=True, slots=True)
class WebOptions:
    """How patient to be.

    Attributes:
        n_tries: attempts in a row that may fail without a single new byte.
        first_pause_s, longest_pause_s: between attempts; each pause is twice the one before.
        silence_s: a connection that says nothing for so long counts as cut.
        n_redirects: most redirects of one request.
        uses_proxies: whether all requests, to loopback too, go through the proxies of the environment (``HTTP_PROXY``).
    """

    n_tries: int = 6
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0
    silence_s: float = 30.0
    n_redirects: int = 5
    uses_proxies: bool = True

    def pause_s(self, n_failures: int, luck: float) -> float:
        """How long to wait after so many failures in a row.

        Args:
            luck: from 0 to 1, so that a fleet does not come back in one moment.
        """
        longest: float = min(self.longest_pause_s, self.first_pause_s * 2 ** (n_failures - 1))
        return longest * (0.5 + 0.5 * luck)


class Web(Closing):
    """Requests below one URL.  Safe to use from several threads.

    Attributes:
        url: of the store, without a final slash.
    """

    def __init__(self, url: str, token: str | None = None, options: WebOptions | None = None) -> None:
        """Nothing is sent yet.

        Raises:
            InvalidRequest: no http or https URL, or one with a password, a query or a fragment.
        """
        self.url = _checked_url(url)
        self.options = options or WebOptions()
        self._stopped = threading.Event()
        self._open: set[httpx.Response] = set()
        headers = {"Accept-Encoding": "identity", "User-Agent": f"lamella/{__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {check_token(token)}"
        self._client = httpx.Client(
            headers=headers,
            timeout=self.options.silence_s,
            follow_redirects=True,
            max_redirects=self.options.n_redirects,
            event_hooks={"request": [self._check_request]},
            trust_env=self.options.uses_proxies,
        )

    def close(self) -> None:
        self._client.close()

    def stop(self) -> None:
        """End all requests of all threads at once: they raise ``Stopped``, and so do later ones."""
        self._stopped.set()
        for response in list(self._open):
            _hang_up(response)

    @contextlib.contextmanager
    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, content: Content | None = None
    ) -> Iterator[httpx.Response]:
        """One attempt; the body is not read yet.

        Args:
            path: below the URL, without a slash in front; "" for the store itself.

        Raises:
            ConnectionCut: it may work later.
            Stopped: ``stop`` was called.
            RemoteInvalid: redirects without end or to where nobody should go, or a compressed answer.
        """
        target = f"{self.url}/{path}"
        body = content() if callable(content) else content
        with self._in_words(target):
            self._check_stopped()
            follow = method in ("GET", "HEAD")  # nothing that was meant for one place is sent to another
            with self._client.stream(
                method, target, headers=headers, content=body, follow_redirects=follow
            ) as response:
                self._open.add(response)
                try:
                    self._check_stopped()  # after it became visible to ``stop``: one of the two sees the other
                    _check_answer(response, target)
                    yield response
                finally:
                    self._open.discard(response)

    def body(self, path: str, most_bytes: int) -> bytes | None:
        """A small document, tried again when the connection is cut; None if there is none (404).

        Raises:
            RemoteInvalid: it is larger than ``most_bytes``; no more than that is read.
            RemoteFailed: refused, or not reached.
        """

        def read() -> bytes | None:
            with self.request("GET", path) as response:
                if response.status_code == 404:
                    return None
                self.expect(response, 200)
                data = bytearray()
                for piece in response.iter_raw():
                    data += piece
                    if len(data) > most_bytes:
                        raise RemoteInvalid(f"{response.url} is larger than {format_bytes(most_bytes)}")
                return bytes(data)

        return self.patiently(read)

    def patiently(self, attempt: Callable[[], T]) -> T:
        """Repeat an attempt that may be cut, with growing pauses.

        Raises:
            RemoteFailed: it was cut ``n_tries`` times.
        """
        for n_failures in range(1, self.options.n_tries):
            try:
                return attempt()
            except ConnectionCut:
                self.pause(n_failures)
        return attempt()

    def pause(self, n_failures: int) -> None:
        """Wait after so many failures in a row.

        Raises:
            Stopped: ``stop`` was called meanwhile.
        """
        if self._stopped.wait(self.options.pause_s(n_failures, random.random())):
            raise Stopped("stopped")

    def expect(self, response: httpx.Response, *codes: int) -> None:
        """Refuse an answer of another status.

        Raises:
            ConnectionCut: a status that passes (busy, overloaded).
            RemoteFailed: one that stays.
        """
        code = response.status_code
        if code in codes:
            return
        said = f"{response.request.method} {response.url}: {code} {response.reason_phrase}"
        if code in _TEMPORARY:
            raise ConnectionCut(said)
        if code in (401, 403):
            said += "; give a token that the server accepts with --token or LAMELLA_TOKEN"
        raise RemoteFailed(said)

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped("stopped")

    def _check_request(self, request: httpx.Request) -> None:
        """Called before each request, redirected ones included."""
        if httpx.URL(self.url).scheme == "https" and request.url.scheme == "http":
            raise RemoteInvalid(f"{self.url} redirects from https to {request.url}, where anybody may listen")

    @contextlib.contextmanager
    def _in_words(self, target: str) -> Iterator[None]:
        try:
            yield
        except httpx.TooManyRedirects:
            raise RemoteInvalid(f"{target} redirects more than {self.options.n_redirects} times") from None
        except httpx.UnsupportedProtocol as error:
            raise RemoteInvalid(f"{target} redirects to neither http nor https: {error}") from None
        except httpx.InvalidURL as error:  # not this one, which was looked at, but one that an answer names
            raise RemoteInvalid(f"{target} redirects to what is no URL: {error}") from None
        except (httpx.HTTPError, httpx.StreamError, OSError, ValueError) as error:
            if self._stopped.is_set():
                raise Stopped("stopped") from None
            if not isinstance(error, httpx.TransportError):
                raise
            raise ConnectionCut(f"{target}: {str(error) or type(error).__name__}") from None


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"'{url}' is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidRequest(f"'{url}' is no http or https URL, such as http://host:8090/store")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise InvalidRequest(f"a store's URL has no password, query or fragment: http://{parsed.host}{parsed.path}")
    return url.rstrip("/")


def check_token(token: str) -> str:
    """The token, if a header can carry it.

    Raises:
        InvalidRequest: it cannot.
    """
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest("a token is made of printable ASCII characters without spaces")
    return token


def _check_answer(response: httpx.Response, target: str) -> None:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RemoteInvalid(f"{target} was sent compressed ({encoding!r}), which was not asked for and is not unpacked")


def _hang_up(response: httpx.Response) -> None:
    """Wake the thread that waits for more of this answer."""
    stream = response.extensions.get("network_stream")
    connection = stream.get_extra_info("socket") if stream else None
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
