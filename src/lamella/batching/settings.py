"""What an engine process is told when it starts: its first frame."""

from __future__ import annotations

from typing import Literal

import msgspec

from lamella.batching.steps import LONGEST_STEP_SECONDS
from lamella.core.errors import NO_CEILING_ON_DEVICES, InvalidRequest

CELLS_FOR_EACH = 1024
"""KV cells for each sequence, where it is not said how many there shall be."""

Pooling = Literal["auto", "mean", "cls", "last", "off"]


class LayersAt(msgspec.Struct, frozen=True):
    """Layers ``first`` to ``end - 1``, and where they are computed.

    Attributes:
        endpoint: address of an RPC server on this machine, as ``EngineSettings.rpc`` has them; "" for this process.
    """

    endpoint: str
    first: int
    end: int


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine of a server runs.

    Attributes:
        store: folder of the store.
        variant: the first to run; None takes the largest, under a memory ceiling the largest that fits.
        variants: those that may be served; None for all of the store.
        n_ctx: most tokens of one sequence.
        n_cells: tokens that the KV cache holds for all sequences, which share them; 0 gives each ``n_ctx`` of its own
            where there is plenty of memory and no ceiling, else ``cells``.
        n_sequences: requests that run at once.
        n_batch: most tokens in one step.
        longest_step_seconds: about the longest that a stream waits for its next token while prompts of others are
            read.  Shorter steps make streams smoother and first tokens later.
        kv_type: ggml type of the KV cache.
        n_threads: 0 for the cores that the process may use.
        layout: ``mapped``, ``repacked`` or ``auto`` (``run.layouts``).
        n_warm: variants whose shards stay open, the running one included.
        memory_bytes: ceiling for mapped shards and private memory together, also during a switch; 0 for none.
            Of this process; the web front beside it takes some 100 MiB of its own.
        rpc: addresses of llama.cpp's RPC servers on this machine; their devices join those there are.
        device: ggml device that computes and holds weights and KV cache; None for the CPU.  Without ``memory_bytes``.
        layers: which RPC server computes which layers, from the first to the last; empty for one device.  Without
            ``device`` and ``memory_bytes``.
        prompt_cache_bytes: memory for sequences that left the KV cache, for prompts that begin like them; None for an
            eighth of what is available, at most 1 GiB, and nothing under a ceiling.
        is_reproducible: a request's tokens do not depend on what runs beside it, nor on a restart
            (``llama.reproducible``); on the CPU, with mapped weights and KV cells of its own for each sequence.
        check: verify the hash of every shard before it is used.
        pooling: how embeddings are made of token states; ``auto`` for what the model file says, if anything.
        cache_folder: where the engine before has written its KV cache (``SaveCache``), which this one begins with if
            it can; "" for none.
        kernel_file: cache of measured kernel speeds of this machine; "" for none.
    """

    store: str
    variant: str | None = None
    variants: list[str] | None = None
    n_ctx: int = 4096
    n_cells: int = 0
    n_sequences: int = 8
    n_batch: int = 512
    longest_step_seconds: float = LONGEST_STEP_SECONDS
    kv_type: str = "F16"
    n_threads: int = 0
    layout: Literal["auto", "mapped", "repacked"] = "auto"
    n_warm: int = 2
    memory_bytes: int = 0
    rpc: list[str] = []
    device: str | None = None
    layers: list[LayersAt] = []
    prompt_cache_bytes: int | None = None
    is_reproducible: bool = False
    check: bool = False
    pooling: Pooling = "auto"
    cache_folder: str = ""
    kernel_file: str = ""

    @property
    def cells(self) -> int:
        """Tokens that the KV cache holds.

        Where it is not said: as many as the longest request, as llama-server's unified cache has them (``-c``), but at
        least ``CELLS_FOR_EACH`` for each sequence, so that as many requests of usual length as may run at once do.
        Sequences share the cells: a request may take all, and where there are too few, the least urgent wait.
        """
        shared = max(self.n_ctx, CELLS_FOR_EACH * self.n_sequences)
        return self.n_cells or min(shared, self.n_ctx * self.n_sequences)

    @property
    def bounded_cells(self) -> int:
        """Tokens that sequences share, where something bounds them: a number that was said, or a memory ceiling.

        0 where nothing does: with plenty of memory each sequence then has cells of its own, and always where answers
        are reproducible.
        """
        if self.is_reproducible:
            return 0
        return self.n_cells or (self.cells if self.memory_bytes else 0)

    def check_possible(self) -> None:
        """Refuse settings that exclude each other.

        Raises:
            InvalidRequest: they do.
        """
        if (self.device or self.layers) and self.memory_bytes:
            raise InvalidRequest(NO_CEILING_ON_DEVICES)
        if self.device and self.layers:
            raise InvalidRequest("either one device, or layers on several")
        if self.is_reproducible:
            self._check_reproducible()

    def _check_reproducible(self) -> None:
        if self.device:
            raise InvalidRequest(f"--reproducible is for the CPU; leave --device {self.device} away")
        if self.layers:
            raise InvalidRequest("--reproducible is for the CPU of one machine, and not for layers on several")
        if self.layout == "repacked":
            raise InvalidRequest("--reproducible reads mapped weights; leave --layout repacked away")
        if self.n_cells:
            raise InvalidRequest(
                f"--reproducible gives each of {self.n_sequences} sequences {self.n_ctx} KV cells of its own; "
                f"leave --cells {self.n_cells} away, and lower --context or --sequences where that is too much"
            )
