"""The options that make an engine's shape: what changes its speeds or its limits, so that a profile is of one shape.

``lamella serve`` runs an engine of that shape, ``lamella profile`` measures one, ``lamella simulate`` finds what was
measured of one; they take the same options with the same defaults, those of ``EngineSettings``
(``qos.profiling.shape`` is the way back).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import msgspec

from lamella.batching.settings import EngineSettings
from lamella.cli.numbers import MOST_SEQUENCES, MOST_TOKENS
from lamella.cli.options import option_under
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.precision import CACHE_TYPES
from lamella.run.layouts import check_policy

_engine_option = option_under("Engine")
_USUAL = EngineSettings(store="")


@dataclass(frozen=True)
class CacheFlags:
    """The KV cache that an engine opens beside the weights: what decides how much memory is left for these."""

    context: Annotated[int, _engine_option(help="Most tokens of one request.", min=1, max=MOST_TOKENS)] = _USUAL.n_ctx
    sequences: Annotated[int, _engine_option(help="Requests that run at once.", min=1, max=MOST_SEQUENCES)] = (
        _USUAL.n_sequences
    )
    cells: Annotated[
        int,
        _engine_option(
            help="Tokens in a KV cache that all requests share; 0: --context for each, if memory is plenty.",
            min=0,
            max=MOST_TOKENS,
        ),
    ] = _USUAL.n_cells
    kv_type: Annotated[str, _engine_option(help="ggml type of the KV cache.")] = _USUAL.kv_type
    reproducible: Annotated[
        bool,
        _engine_option(
            "--reproducible",
            help="Answers do not depend on what runs beside them, nor on restarts; slower prompts and full batches.",
        ),
    ] = False

    def cache(self, device: str | None = None) -> EngineSettings:
        """An engine with this cache, usual in all else.

        Raises:
            InvalidRequest: an option that has no meaning.
        """
        self._check_cache()
        found = EngineSettings(
            store="",
            n_ctx=self.context,
            n_cells=self.cells,
            n_sequences=self.sequences,
            kv_type=self.kv_type.upper(),
            device=device,
            is_reproducible=self.reproducible,
        )
        found.check_possible()
        return found

    def _check_cache(self) -> None:
        if self.cells and self.cells < self.context:
            raise InvalidRequest(f"--cells must be 0 or at least --context, not {self.cells} and {self.context}")
        if self.kv_type.upper() not in CACHE_TYPES:
            raise InvalidRequest(f"'{self.kv_type}' is no KV cache type; known: {', '.join(CACHE_TYPES)}")


@dataclass(frozen=True)
class ShapeFlags(CacheFlags):
    """Limits of an engine, and where and how it computes."""

    longest_step: Annotated[
        float,
        _engine_option(
            help="Seconds that a stream may wait for its next token while prompts are read, about.  "
            "Less makes streams smoother and first tokens later."
        ),
    ] = _USUAL.longest_step_seconds
    rpc: Annotated[
        list[str] | None,
        _engine_option(
            help="Address of an rpc-server of llama.cpp on this machine, whose devices may be used; may be repeated.",
            metavar="HOST:PORT",
        ),
    ] = None
    device: Annotated[
        str | None,
        _engine_option(help="Device to run on, as 'lamella devices' names it; default: the CPU. Not with --memory."),
    ] = None
    layout: Annotated[str, _engine_option(help="How weights are read: auto, mapped, repacked.")] = _USUAL.layout

    def settings(self, store: str = "") -> EngineSettings:
        """An engine of this shape, with the threads and the kernel speeds of this machine's configuration.

        Raises:
            InvalidRequest: an option that has no meaning.
        """
        if self.longest_step <= 0:
            raise InvalidRequest(f"--longest-step must be a number of seconds above 0, not {self.longest_step:g}")
        config = Config.from_environment(os.environ)
        found = msgspec.structs.replace(
            self.cache(self.device),
            store=store,
            longest_step_seconds=self.longest_step,
            n_threads=config.n_threads,
            layout=check_policy(self.layout),
            rpc=list(self.rpc or ()),
            kernel_file=str(config.cache_folder / "kernels.json"),
        )
        found.check_possible()
        return found
