"""Where models that are served by name have their stores, and which of them are ready: folders of the user's cache.

    CACHE/models/OWNER/REPO/model.gguf       fetched from the Hub
    CACHE/stores/smollm2-1a2b3c4d/           one store a model, named by its weights
    CACHE/ready/0f1e....json                 what was asked for is built: served at once the next time

Everything here may be deleted at any time; it is made again when it is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lamella.core.errors import LamellaError, StoreFormatError
from lamella.core.model import ModelIdentity
from lamella.resources.catalogue import DEFAULT_MODEL, known_name
from lamella.store.documents import read_note, write_document
from lamella.store.files import storage_errors, write_atomically
from lamella.store.sources import SourceFile
from lamella.store.store import Store

HUB_PREFIX = "hf:"
READY_FORMAT = "lamella.ready"
STORES = "stores"
_UNSPEAKABLE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Ready:
    """A model that is built.

    Attributes:
        target: what was asked for: ``smollm2``, an absolute path, or ``hf:OWNER/REPO``.
        memory_bytes: ceiling that its variants were planned for; 0 for what the machine has.
        store: name of its folder under ``CACHE/stores``.
        variants: names, largest first.
        files: the model file as it was.
    """

    target: str
    memory_bytes: int
    store: str
    variants: tuple[str, ...]
    files: tuple[SourceFile, ...]

    def folder(self, cache_folder: Path) -> Path:
        """Of the store."""
        return cache_folder / STORES / self.store

    def is_up_to_date(self, cache_folder: Path) -> bool:
        """Whether the store still has the variants, and the model file, if it is still there, is the same."""
        with contextlib.suppress(LamellaError):
            built = {variant.name for variant in Store.open(self.folder(cache_folder)).readable_variants()[0]}
            return built.issuperset(self.variants) and not any(_is_another(file) for file in self.files)
        return False


def _is_another(file: SourceFile) -> bool:
    return Path(file.path).exists() and bool(file.change())


def is_model(target: str) -> bool:
    """Whether ``lamella serve`` was given a model, and not a store."""
    if (Path(target) / "store.json").exists():
        return False
    return target == DEFAULT_MODEL or target.startswith(HUB_PREFIX) or Path(target).is_file()


def spoken_name(target: str) -> str:
    """What requests call a model that is served by its name: that of the file, or of the repository."""
    if target.startswith(HUB_PREFIX):
        return target.split("/")[1]
    return "-".join(Path(target).stem.split())


def canonical(target: str) -> str:
    """The same words for the same model, whatever the folder that they were said in."""
    return str(Path(target).resolve()) if Path(target).is_file() and target != DEFAULT_MODEL else target


def store_name(identity: ModelIdentity, file: Path) -> str:
    """Folder of a model's store.  Named by its weights: two files of one name are two models."""
    name = _UNSPEAKABLE.sub("-", known_name(str(file)) or file.stem).strip("-.") or "model"
    return f"{name}-{identity.weights[:8]}"


def fetched_folder(cache_folder: Path, repository: str) -> Path:
    """Where the files of a repository of the Hub go."""
    return cache_folder / "models" / repository


def stores_in(cache_folder: Path) -> tuple[Path, ...]:
    """All stores of models that were served by name."""
    return tuple(sorted(path.parent for path in (cache_folder / STORES).glob("*/store.json")))


def find_ready(cache_folder: Path, target: str, memory_bytes: int) -> Ready | None:
    """What is built for a target, if it is still good; None where it must be made (again)."""
    path = _note(cache_folder, target, memory_bytes)
    with contextlib.suppress(StoreFormatError):
        found = read_note(path, READY_FORMAT, Ready, f"rm {path}")
        return found if found is not None and found.is_up_to_date(cache_folder) else None
    return None


def note_ready(cache_folder: Path, ready: Ready) -> None:
    """Remember that a model is built.

    Raises:
        StorageFailed: the file system refused.
    """
    path = _note(cache_folder, ready.target, ready.memory_bytes)
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.parent, path, write_document(READY_FORMAT, asdict(ready)))


def _note(cache_folder: Path, target: str, memory_bytes: int) -> Path:
    asked = hashlib.sha256(f"{memory_bytes} ".encode() + os.fsencode(target)).hexdigest()
    return cache_folder / "ready" / f"{asked[:32]}.json"


def names_of(bits: Sequence[float], memory: str | None) -> tuple[str, ...]:
    """Names of variants by their bits per weight, told apart from those that were planned for another memory."""
    said = "".join(memory.split()) if memory else ""
    prefix = f"{'0' if said.startswith('.') else ''}{said}-" if said else ""  # variants' names begin with a digit
    for digits in (1, 2, 3):
        names = tuple(f"{prefix}{b:.{digits}f}bpw" for b in bits)
        if len(set(names)) == len(names):
            return names
    return tuple(f"{prefix}{i + 1}-{b:.3f}bpw" for i, b in enumerate(bits))
