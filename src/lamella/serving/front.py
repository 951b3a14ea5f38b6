"""What all routes share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lamella.batching.messages import Hello
from lamella.core.errors import EngineUnavailable
from lamella.serving.engine_client import EngineClient
from lamella.serving.gate import Gate
from lamella.serving.metrics import Metrics
from lamella.serving.openai.names import ModelNames, Target
from lamella.serving.settings import FrontSettings

SEEDS = 2**32 - 1
"""Seeds are below this: 32 bits are what llama.cpp takes, and its largest number means "any"."""


@dataclass(frozen=True)
class Front:
    """The parts of one server.

    Attributes:
        started: unix time, for ``created`` of models.
        clock: seconds that never go back.
        new_seed: a seed for requests that have none.
        new_id: the part of an answer's id that makes it unique.
    """

    client: EngineClient
    settings: FrontSettings
    metrics: Metrics
    gate: Gate
    started: int = field(default_factory=lambda: int(time.time()))
    clock: Callable[[], float] = time.perf_counter
    new_seed: Callable[[], int] = lambda: secrets.randbelow(SEEDS)
    new_id: Callable[[], str] = lambda: secrets.token_hex(12)

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
