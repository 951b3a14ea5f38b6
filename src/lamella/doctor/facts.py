"""What there is to know of a machine before models run on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lamella.resources.devices import DeviceMemory
from lamella.resources.machine import CpuMemory


@dataclass(frozen=True, slots=True)
class Compiler:
    """The C++ compiler that would build llama.cpp.

    Attributes:
        path: "" where there is none.
        version: the first line of what it says of itself.
    """

    path: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor.

    Attributes:
        flags: instructions that it has, as the kernel names them; empty where the system does not tell.
        n_cores, n_usable: of the machine, and those that this process may use.
    """

    name: str
    flags: frozenset[str]
    n_cores: int
    n_usable: int


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """llama.cpp, as a child process that loaded it and tested it found it.

    Attributes:
        version: of llama-cpp-python; "" where it is not installed.
        error: why it cannot be used; "" where it can.
        is_too_slow: that it cannot be used was not seen, only that it took too long to load.
        features: what it was built for and this processor has: ``AVX2``, ``FMA`` ...
        backends: of its devices: ``CPU``, ``CUDA`` ...
        has_rpc: whether it can use devices of other processes.
    """

    version: str = ""
    error: str = ""
    features: frozenset[str] = frozenset()
    backends: tuple[str, ...] = ()
    has_rpc: bool = False
    is_too_slow: bool = False


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """What a model takes at least.

    Attributes:
        model: as it was asked for.
        error: why that is not known; "" where it is.
        is_too_slow: only because reading it took too long.
        smallest_bytes: memory of its smallest plan, a context of ``n_ctx`` tokens included.
        file_bytes: size of the model file.
        largest_bytes, store_bytes: on disk, of the largest variant that ``lamella prepare`` builds, and at most of all.
    """

    model: str
    error: str = ""
    smallest_bytes: int = 0
    file_bytes: int = 0
    n_ctx: int = 0
    largest_bytes: int = 0
    store_bytes: int = 0
    is_too_slow: bool = False


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder that is written to.

    Attributes:
        error: why nothing can be written there; "" where it can.
        free_bytes: for an ordinary user.
    """

    folder: str
    free_bytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """A store, looked at without reading its weights.

    Attributes:
        error: why it cannot be opened; "" where it can.
        n_variants: that can be read.
        damage: what is wrong inside, a sentence each.
    """

    path: str
    error: str = ""
    n_variants: int = 0
    damage: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine.

    Attributes:
        system: name and version of Python and operating system.
        graphics: graphics processors that the system shows, be llama.cpp built for them or not: ``NVIDIA``, ``AMD``.
        address_space_bytes: limit of this process (``ulimit -v``); None for none.
    """

    system: str
    compiler: Compiler
    processor: Processor
    library: LibraryFacts
    memory: CpuMemory
    disk: Disk
    devices: Sequence[DeviceMemory] = ()
    graphics: Sequence[str] = ()
    address_space_bytes: int | None = None
    need: ModelNeed | None = None
    stores: Sequence[StoreFacts] = field(default_factory=tuple)
