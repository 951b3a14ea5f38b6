"""Settings from the environment.  Nothing else in Lamella reads it.

| variable | meaning |
| --- | --- |
| ``LAMELLA_DEVICE`` | ggml device to plan for, for example ``CUDA0``; default: the one with most free memory |
| ``LAMELLA_THREADS`` | threads for computing; default: the cores that this process may use |
| ``LAMELLA_CACHE`` | folder for what was measured on this machine; default: ``$XDG_CACHE_HOME/lamella`` |
| ``LAMELLA_TOKEN`` | token of remote stores, for ``pull``, ``push`` and ``serve-store`` |
| ``LAMELLA_API_KEYS`` | keys of ``lamella serve``: ``role:key``, by commas or lines; ``--keys`` goes before it |
| ``LAMELLA_API_KEY`` | one key, for ``lamella chat`` |
| ``LAMELLA_CLUSTER`` | folder of the cluster that this machine coordinates: ``$XDG_CONFIG_HOME/lamella/cluster`` |
| ``LAMELLA_NODE`` | folder of this machine as a node; default: ``$XDG_DATA_HOME/lamella/node`` |
| ``LAMELLA_LLAMA_CPP`` | a checkout of llama.cpp, whose script converts safetensors |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lamella.core.cores import MOST_THREADS
from lamella.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Config:
    """What the environment says.

    Attributes:
        device: name of a ggml device, or None.
        n_threads: 0 for all cores that this process may use.
        cache, cluster, node: the folders below; None where none is named and this user has no home folder.
        token: for remote stores, or None.
        llama_cpp: checkout of llama.cpp, or None.
        api_keys: of a server, as its file of keys has them; None where the variable is not set.  Set and without a key
            is another thing: a server that was meant to have keys must not be open.
        api_key: that a client sends, or None.
    """

    device: str | None
    n_threads: int
    cache: Path | None
    cluster: Path | None
    node: Path | None
    token: str | None = field(default=None, repr=False)
    llama_cpp: Path | None = None
    api_keys: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables above.

        Raises:
            InvalidRequest: a value that is no number where one is needed.
        """
        return cls(
            device=environ.get("LAMELLA_DEVICE") or None,
            n_threads=_threads(environ.get("LAMELLA_THREADS", "")),
            cache=_folder(environ, "LAMELLA_CACHE", "XDG_CACHE_HOME", ".cache"),
            cluster=_folder(environ, "LAMELLA_CLUSTER", "XDG_CONFIG_HOME", ".config", "cluster"),
            node=_folder(environ, "LAMELLA_NODE", "XDG_DATA_HOME", ".local/share", "node"),
            token=environ.get("LAMELLA_TOKEN") or None,
            llama_cpp=Path(environ["LAMELLA_LLAMA_CPP"]) if environ.get("LAMELLA_LLAMA_CPP") else None,
            api_keys=environ.get("LAMELLA_API_KEYS"),
            api_key=environ.get("LAMELLA_API_KEY") or None,
        )

    @property
    def cache_folder(self) -> Path:
        """For machine measurements; may be deleted at any time.

        Raises:
            InvalidRequest: from this and the others: there is none; says what to set.
        """
        return _known(self.cache, "LAMELLA_CACHE")

    @property
    def cluster_folder(self) -> Path:
        """Of the cluster that this machine coordinates."""
        return _known(self.cluster, "LAMELLA_CLUSTER")

    @property
    def node_folder(self) -> Path:
        """Of this machine as a node of a cluster."""
        return _known(self.node, "LAMELLA_NODE")


def _folder(environ: Mapping[str, str], own: str, common: str, under_home: str, *names: str) -> Path | None:
    """What the variable ``own`` says, else a folder of ours where ``common`` says, else below the home folder."""
    if said := environ.get(own):
        return Path(said)
    if said := environ.get(common):
        return Path(said, "lamella", *names)
    try:
        return Path.home().joinpath(under_home, "lamella", *names)
    except RuntimeError:  # a container may run as a number that has neither
        return None


def _known(folder: Path | None, variable: str) -> Path:
    if folder is None:
        raise InvalidRequest(
            f"this user has no home folder: neither HOME nor an entry in the user database; set {variable} to a folder"
        )
    return folder


def _threads(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST_THREADS:
        raise InvalidRequest(f"LAMELLA_THREADS must be a number from 1 to {MOST_THREADS}, not '{text[:40]}'")
    return int(text)
