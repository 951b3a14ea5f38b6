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
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import count
from pathlib import Path

from lamella.core.errors import LamellaError, StoreFormatError
from lamella.core.model import ModelIdentity
from lamella.resources.catalogue import DEFAULT_MODEL, known_name
from lamella.store.documents import read_note, write_document
from lamella.store.files import storage_errors, write_atomically
from lamella.store.sources import SourceFile
from lamella.store.store import Store

HUB_PREFIX = "hf:"
HOST = "CPU"
"""Where a server runs that is told nothing else."""
READY_FORMAT = "lamella.ready"
STORES = "stores"
WORTH_PLANNING = 1.1
"""So many times the memory that was planned for is worth another plan: what is free wavers by some percent."""
_UNSPEAKABLE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model is made ready for: everything that decides which variants memory holds.

    Attributes:
        target: what was asked for: ``smollm2``, an absolute path, or ``hf:OWNER/REPO``.
        memory_bytes: ceiling that was said; 0 for what the device has free.
        device: whose memory that is, in capital letters.
        n_ctx, n_sequences, n_cells, kv_type, is_reproducible: of the KV cache that will be opened beside the weights
            (``EngineSettings``); ``n_cells`` is 0 where nothing bounds them.
    """

    target: str
    memory_bytes: int
    device: str
    n_ctx: int
    n_sequences: int
    n_cells: int
    kv_type: str
    is_reproducible: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """A model that is built.

    Attributes:
        wanted: what for.
        planned_bytes: memory that its variants were planned for: that which was said, or what was free then.
        is_bound: whether more memory would have given a larger variant.
        store: name of its folder under ``CACHE/stores``.
        variants: names, largest first.
        files: the model file as it was.
    """

    wanted: Wanted
    planned_bytes: int
    is_bound: bool
    store: str
    variants: tuple[str, ...]
    files: tuple[SourceFile, ...]

    def folder(self, cache_folder: Path) -> Path:
        """Of the store."""
        return cache_folder / STORES / self.store

    def is_outgrown(self, total_bytes: int, free_bytes: int) -> bool:
        """Whether the device's memory, as it is now, would hold a larger variant.

        Args:
            total_bytes, free_bytes: of the device.
        """
        said = self.wanted.memory_bytes
        return self.is_bound and (min(said, total_bytes) if said else free_bytes) >= WORTH_PLANNING * self.planned_bytes

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


def find_ready(cache_folder: Path, wanted: Wanted) -> Ready | None:
    """What is built for that, if it is still good; None where it must be made (again)."""
    path = _note(cache_folder, wanted)
    with contextlib.suppress(StoreFormatError):
        found = read_note(path, READY_FORMAT, Ready, f"rm {path}")
        return found if found is not None and found.is_up_to_date(cache_folder) else None
    return None


def note_ready(cache_folder: Path, ready: Ready) -> None:
    """Remember that a model is built.

    Raises:
        StorageFailed: the file system refused.
    """
    path = _note(cache_folder, ready.wanted)
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.parent, path, write_document(READY_FORMAT, asdict(ready)))


def _note(cache_folder: Path, wanted: Wanted) -> Path:
    asked = hashlib.sha256(b" ".join(os.fsencode(str(value)) for value in astuple(wanted))).hexdigest()
    return cache_folder / "ready" / f"{asked[:32]}.json"


def names_of(
    bits: Sequence[float], memory: str | None, is_taken: Callable[[int, str], bool] = lambda _number, _name: False
) -> tuple[str, ...]:
    """Names of variants by their bits per weight, told apart from those that were planned for another memory.

    Args:
        is_taken: whether a name is that of another variant than the one of this number.
    """
    said = "".join(memory.split()) if memory else ""
    prefix = f"{'0' if said.startswith('.') else ''}{said}-" if said else ""  # variants' names begin with a digit
    for digits in (1, 2, 3):
        names = tuple(f"{prefix}{b:.{digits}f}bpw" for b in bits)
        if len(set(names)) == len(names) and not any(map(is_taken, count(), names)):
            return names
    for turn in count(1):
        names = tuple(f"{prefix}{i + 1}-{b:.3f}bpw{f'-{turn}' if turn > 1 else ''}" for i, b in enumerate(bits))
        if not any(map(is_taken, count(), names)):
            return names
    raise AssertionError("there is always another number")
