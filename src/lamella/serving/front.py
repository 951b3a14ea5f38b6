"""What all routes share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from lamella.batching.messages import Finished, Generate, Hello
from lamella.core.errors import EngineUnavailable, InvalidRequest
from lamella.dashboard.recorder import Recorder
from lamella.qos.live.control import VariantControl
from lamella.serving.engine_client import EngineClient
from lamella.serving.gate import Gate
from lamella.serving.metrics import Metrics, Timing, priority_class
from lamella.serving.openai.errors import api_error
from lamella.serving.openai.names import ModelNames, Target
from lamella.serving.settings import FrontSettings

SEEDS = 2**32 - 1
"""Seeds are below this: 32 bits are what llama.cpp takes, and its largest number means "any"."""


@dataclass(frozen=True)
class Front:
    """The parts of one server.

    Attributes:
        control: decides which variant runs, and keeps what was decided.
        recorder: what the dashboard shows of the past.
        started: unix time, for ``created`` of models.
        clock: seconds that never go back.
        new_seed: a seed for requests that have none.
        new_id: the part of an answer's id that makes it unique.
    """

    client: EngineClient
    settings: FrontSettings
    metrics: Metrics
    gate: Gate
    control: VariantControl
    recorder: Recorder
    started: int = field(default_factory=lambda: int(time.time()))
    clock: Callable[[], float] = time.perf_counter
    new_seed: Callable[[], int] = lambda: secrets.randbelow(SEEDS)
    new_id: Callable[[], str] = lambda: secrets.token_hex(12)

    def finished(self, end: Finished, timing: Timing, request: Generate) -> None:
        """A generation has ended: count it."""
        self.metrics.finished(end, timing, request.priority)
        name = request.class_name or priority_class(request.priority)
        self.recorder.finished(name, timing.ttft_seconds, timing.tpot_seconds)

    def facts(self) -> Hello:
        """Of the running model.

        Raises:
            EngineUnavailable: no engine has been up.
        """
        if self.client.facts is None:
            raise EngineUnavailable("No engine is up yet.")
        return self.client.facts

    def names(self) -> ModelNames:
        """What the model is called.

        Raises:
            EngineUnavailable: no engine has been up.
        """
        return ModelNames.of(self.facts(), self.settings)

    def target(self, name: str) -> Target:
        """What a model name means.

        Raises:
            ApiError: no such model.
            EngineUnavailable: no engine has been up, so that nobody knows.
        """
        return self.names().resolve(name)

    def classified(self, requests: Sequence[Generate], name: str | None, priority: int | None) -> list[Generate]:
        """Requests with their class, and with its priority unless they ask for one.

        Raises:
            ApiError: the server's objectives know no such class.
        """
        try:
            found = self.control.request_class(name, priority)
        except InvalidRequest as error:
            raise api_error(error, param="class") from None
        return [msgspec.structs.replace(r, class_name=found.name, priority=found.priority) for r in requests]
