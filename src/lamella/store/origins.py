"""Where shards were pulled from: the URL of a remote store for each, so that it can be fetched from there again.

    store.origins.note(shard_id, "http://host:8090/models/smollm2")
    store.origins.find(shard_id)

A URL is all that is noted: no token, no password.  Whoever fetches believes no byte of what a URL gives
(``fetching``), so a note that is wrong costs a request and no more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lamella.core.errors import InvalidRequest, StoreFormatError
from lamella.store.documents import read_note, write_document
from lamella.store.files import storage_errors, write_atomically
from lamella.store.layout import Layout

ORIGIN_FORMAT = "lamella.origin"


@dataclass(frozen=True, slots=True)
class _Origin:
    shard: str
    url: str


class Origins:
    """The notes of a store.  Holds no file open."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def note(self, shard_id: str, url: str) -> None:
        """Remember that this shard comes from the store at ``url``, in place of what was noted of it.

        Raises:
            InvalidRequest: the URL is not http or https, or has a user name, a password, a query or a fragment.
            StorageFailed: the file system refused.
        """
        if not _may_be_noted(url):
            raise InvalidRequest(
                "the URL of a store is http or https and has no user name, password, query or fragment"
            )
        document = write_document(ORIGIN_FORMAT, asdict(_Origin(shard_id, url)))
        write_atomically(self._layout.incoming, self._layout.origin(shard_id), document)

    def find(self, shard_id: str) -> str | None:
        """The URL of the store that the shard was pulled from; None if it was not pulled.

        Raises:
            StoreFormatError: the note cannot be read; names it and the cure.
        """
        path, cure = self._layout.origin(shard_id), f"lamella store repair {self._layout.root}"
        found = read_note(path, ORIGIN_FORMAT, _Origin, cure)
        if found is None:
            return None
        if found.shard != shard_id or not _may_be_noted(found.url):
            raise StoreFormatError(f"{path} is about another shard, or names no store; to mend it, run: {cure}")
        return found.url

    def unreadable(self) -> tuple[str, ...]:
        """Why notes cannot be read, each with its file and the cure."""
        return tuple(self._unreadable().values())

    def forget_unreadable(self) -> None:
        """Remove notes that cannot be read: they help nobody."""
        for path in self._unreadable():
            self._forget(path)

    def forget_all_but(self, shards: Collection[str]) -> None:
        """Remove what is noted of other shards."""
        for shard_id, path in self._layout.origin_files():
            if shard_id not in shards:
                self._forget(path)

    def _unreadable(self) -> dict[Path, str]:
        reasons = {}
        for shard_id, path in self._layout.origin_files():
            try:
                self.find(shard_id)
            except StoreFormatError as error:
                reasons[path] = str(error)
        return reasons

    def _forget(self, path: Path) -> None:
        with storage_errors(path, "remove"):
            path.unlink(missing_ok=True)


def _may_be_noted(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_plain = "@" not in parts.netloc and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_plain
