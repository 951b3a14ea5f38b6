"""``lamella serve``: a supervised engine process behind the web front."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.api.controlling import Steering, controlled
from lamella.core.errors import StoreFormatError
from lamella.resources.catalogue import known_name
from lamella.store.store import Store

if TYPE_CHECKING:  # FastAPI and what it brings take a third of a second to import
    from lamella.batching.messages import Hello
    from lamella.batching.settings import EngineSettings
    from lamella.serving.settings import FrontSettings
    from lamella.serving.supervisor import SupervisedEngine


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that takes requests now.

    Attributes:
        url: where, without a path.
        model: the name that requests may give.
        variant: the one that runs.
        variants: all, largest first.
        has_chat: whether the model has a chat template.
    """

    url: str
    model: str
    variant: str
    variants: tuple[str, ...]
    has_chat: bool

    @classmethod
    def of(cls, url: str, name: str, facts: Hello) -> Listening:
        """What a server says of itself: ``name`` is what it was told to call its model, or ""."""
        names = tuple(variant.name for variant in facts.variants)
        return cls(url, name or facts.model, facts.variant, names, facts.has_chat)


def model_name(store: Store) -> str:
    """What a server calls a store's model where nobody says: its name in the catalogue, else that of the folder.

    What model files call themselves ("Smollm2 135M 8k Lc100K Mix1 Ep2") nobody can type.
    """
    for variant in store.readable_variants()[0]:
        try:
            note = store.sources.find(variant.plan.model.weights)
        except StoreFormatError:
            continue
        found = known_name(note.files[0].path) if note else None
        if found:
            return found
    return "-".join(store.path.resolve().name.split())


def _load_web_server() -> None:
    import lamella.api.panels
    import lamella.serving.server  # noqa: F401


async def serve(
    engine: EngineSettings,
    front: FrontSettings,
    *,
    steering: Steering | None = None,
    max_queue: int = 64,
    cache_folder: Path | None = None,
    excuse: Callable[[], bool] = lambda: False,
    beside: Callable[[SupervisedEngine], Coroutine[Any, Any, None]] | None = None,
    on_listening: Callable[[Listening], None] = lambda _: None,
    on_line: Callable[[str], None] = lambda _: None,
) -> None:
    """Answer requests until a signal comes.

    Args:
        steering: what a policy is to keep; None where only hands change the variant.
        max_queue: requests that may wait beside those that run.
        cache_folder: where profiles are kept, for the dashboard of a server without a policy; None: it shows none.
        excuse: see ``SupervisorOptions``.
        beside: runs while the server does, with its engine, and already while that starts.
        on_listening: told what there is once the model is loaded and connections are accepted.
        on_line: gets what the engine process writes on its error stream.

    Raises:
        EngineUnavailable: the engine cannot load the model; says why.
        InvalidRequest: the address, the certificate or a setting cannot be used.
    """
    from lamella.serving.supervision import SupervisorOptions
    from lamella.serving.supervisor import SupervisedEngine

    loading = asyncio.create_task(asyncio.to_thread(_load_web_server))  # while the engine loads its model
    options = SupervisorOptions(max_queue=max_queue, excuse=excuse)
    client = SupervisedEngine(engine, options, on_line=on_line)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        if beside is not None:
            await stack.enter_async_context(_beside(beside(client), on_line))
        await client.start()
        facts = client.facts
        assert facts is not None  # it has started
        await loading
        from lamella.api.panels import measured_variants
        from lamella.serving import server

        # the page shows the profile that a policy goes by, where there is one
        measured = measured_variants(engine, cache_folder) if cache_folder and steering is None else {}
        with controlled(client, steering, on_line) as control:
            await server.serve(
                client,
                front,
                control=control,
                measured=measured,
                on_listening=lambda url: on_listening(Listening.of(url, front.name, facts)),
            )


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], on_line: Callable[[str], None]) -> AsyncIterator[None]:
    """Something that goes on for as long as the block does; should it end by a fault, that is told at once."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            on_line(f"what goes on beside the server has ended, by a fault: {type(error).__name__}: {error}")

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
