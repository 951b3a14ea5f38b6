"""Stores and models elsewhere.  What speaks HTTP is imported where it is used: it takes a fifth of a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.api.sources import reach
from lamella.api.variants import open_store
from lamella.quantize.trimming import keep_quota
from lamella.store.store import Store

if TYPE_CHECKING:
    from lamella.remote.hub import HubReport
    from lamella.remote.pull import OnTransfer, PullReport
    from lamella.remote.push import PushReport
    from lamella.remote.serving import StoreServer


def pull(
    source: str,
    store: str | Path,
    name: str | None = None,
    *,
    replace: bool = False,
    token: str | None = None,
    n_connections: int = 4,
    on_progress: OnTransfer = lambda _: None,
) -> PullReport:
    """Take a variant over from a remote store; only the shards that the local one lacks travel.

    Afterwards the store keeps its quota, where it has one: shards go that can be made again or fetched again.

    Args:
        source: ``URL@VARIANT``; the variant may be left out where the server lists a single one.
        store: folder of the local store; made if it does not exist.
        name: of the variant here; None: the same as there.
        replace: take the place of a variant of that name with other contents.  Who runs that one keeps it.
        token: for servers that ask for one.

    Raises:
        InvalidRequest: no URL, or no variant was named where there are several.
        RemoteFailed, StoreError, StorageFailed: see ``lamella.remote.pull.pull_variant``.
    """
    from lamella.remote.addresses import split_address
    from lamella.remote.pull import pull_variant
    from lamella.remote.remote_store import RemoteStore

    url, variant = split_address(source)
    with RemoteStore(url, token) as remote:
        wanted = variant or remote.only_variant()
        report = pull_variant(
            remote,
            wanted,
            Path(store),
            local_name=name,
            replace=replace,
            n_connections=n_connections,
            on_progress=on_progress,
        )
    return dataclasses.replace(report, trimmed=keep_quota(Store.open(Path(store)), reach))


def push(
    store: str | Path,
    variant: str,
    target: str | Path,
    *,
    token: str | None = None,
    n_connections: int = 4,
    on_progress: OnTransfer = lambda _: None,
) -> PushReport:
    """Send a variant to a remote store: a URL that takes ``PUT``, or a folder.

    Raises:
        RemoteFailed, StoreError, StorageFailed: see ``lamella.remote.push``.
    """
    from lamella.remote.addresses import is_url
    from lamella.remote.push import push_to_folder, push_to_web
    from lamella.remote.web import Web

    opened = open_store(store)
    if not is_url(str(target)):
        return push_to_folder(opened, variant, Path(target), on_progress=on_progress)
    with Web(str(target), token) as web:
        return push_to_web(opened, variant, web, n_connections=n_connections, on_progress=on_progress)


def serving_store(
    store: str | Path, host: str = "127.0.0.1", port: int = 8090, *, token: str | None = None
) -> StoreServer:
    """A read-only web server for a store; ``run`` it, and ``close`` it (or use it in a ``with`` block).

    Raises:
        StoreFormatError: no store.
        InvalidRequest: the address is taken, or not of this machine.
    """
    from lamella.remote.serving import StoreServer

    return StoreServer(Store.open(Path(store)), host, port, token)


def pull_from_hub(
    source: str, folder: str | Path | None = None, *, llama_cpp: Path | None = None, quiet: bool = False
) -> HubReport:
    """Fetch a model file from the Hugging Face Hub: ``hf:OWNER/REPO`` or ``hf:OWNER/REPO/FILE``.

    Args:
        folder: where it goes; None: a folder of the repository's name.
        llama_cpp: checkout of llama.cpp, for repositories that have safetensors only.

    Raises:
        InvalidRequest, RemoteFailed: see ``lamella.remote.hub.pull_from_hub``.
    """
    from lamella.remote import hub
    from lamella.remote.conversion import Converter

    parsed = hub.HubSource.parse(source)
    target = Path(folder) if folder is not None else Path(parsed.repository.partition("/")[2])
    return hub.pull_from_hub(parsed, target, converter=Converter(llama_cpp), quiet=quiet)
