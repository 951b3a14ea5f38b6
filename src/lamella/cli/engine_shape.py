"""The options that make an engine's shape: what changes its speeds or its limits, so that a profile is of one shape.

``lamella serve`` runs an engine of that shape, ``lamella profile`` measures one, ``lamella simulate`` finds what was
measured of one; they take the same options with the same defaults, those of ``EngineSettings``
(``qos.profiling.shape`` is the way back).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Annotated

from lamella.batching.settings import EngineSettings
from lamella.cli.options import option_under
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.precision import CACHE_TYPES
from lamella.run.layouts import check_policy

_engine_option = option_under("Engine")
_USUAL = EngineSettings(store="")


@dataclass(frozen=True)
class ShapeFlags:
    """Limits of an engine, and where and how it computes."""

    context: Annotated[int, _engine_option(help="Most tokens of one request.")] = _USUAL.n_ctx
    sequences: Annotated[int, _engine_option(help="Requests that run at once.")] = _USUAL.n_sequences
    cells: Annotated[
        int,
        _engine_option(
            help="Tokens in a KV cache that all requests share; 0: --context for each, if memory is plenty."
        ),
    ] = _USUAL.n_cells
    longest_step: Annotated[
        float,
        _engine_option(
            help="Seconds that a stream may wait for its next token while prompts are read, about.  "
            "Less makes streams smoother and first tokens later."
        ),
    ] = _USUAL.longest_step_seconds
    kv_type: Annotated[str, _engine_option(help="ggml type of the KV cache.")] = _USUAL.kv_type
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
    reproducible: Annotated[
        bool,
        _engine_option(
            "--reproducible",
            help="Answers do not depend on what runs beside them, nor on restarts; slower prompts and full batches.",
        ),
    ] = False

    def settings(self, store: str = "") -> EngineSettings:
        """An engine of this shape, with the threads and the kernel speeds of this machine's configuration.

        Raises:
            InvalidRequest: an option that has no meaning.
        """
        self._check()
        config = Config.from_environment(os.environ)
        found = EngineSettings(
            store=store,
            n_ctx=self.context,
            n_cells=self.cells,
            n_sequences=self.sequences,
            longest_step_seconds=self.longest_step,
            kv_type=self.kv_type.upper(),
            n_threads=config.n_threads,
            layout=check_policy(self.layout),
            rpc=list(self.rpc or ()),
            device=self.device,
            is_reproducible=self.reproducible,
            kernel_file=str(config.cache_folder / "kernels.json"),
        )
        found.check_possible()
        return found

    def _check(self) -> None:
        if self.sequences < 1:
            raise InvalidRequest(f"--sequences must be at least 1, not {self.sequences}")
        if self.context < 1 or (self.cells and self.cells < self.context):
            raise InvalidRequest(
                f"--context must be at least 1 and --cells 0 or at least that, not {self.context} and {self.cells}"
            )
        if self.kv_type.upper() not in CACHE_TYPES:
            raise InvalidRequest(f"'{self.kv_type}' is no KV cache type; known: {', '.join(CACHE_TYPES)}")
        if not 0 < self.longest_step < math.inf:
            raise InvalidRequest(f"--longest-step must be a number of seconds above 0, not {self.longest_step:g}")
