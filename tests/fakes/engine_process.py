"""An engine process without a model: ``python -m tests.fakes.engine_process [STEP_SECONDS] FD``.

Its tokens are a function of prompt and position, so that an undisturbed run is known beforehand (``expected_tokens``).
Words in a prompt say how it misbehaves, once the request has that many tokens: ``abort@3``, ``exit@0``, ``hang@2``,
``raise@1``, ``orphan@4`` (leaves a process of its own behind); at 0 while the prompt is read.  ``unreadable`` makes
``receive`` raise, ``refuse`` is refused, ``overlong`` has an answer that fits no frame.

A switch to ``bad`` aborts, one to ``later`` is confirmed and aborts in the next step; ``missing`` is refused.
``EngineSettings.store`` is ``fake``, or how loading fails: ``abort``, ``exit``, ``refuse``, ``raise``, ``slow``,
``old``; or a path: then the process aborts while that file is there.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import msgspec

from lamella.batching.frames import FRAME_LIMIT_BYTES
from lamella.batching.messages import (
    PROTOCOL_VERSION,
    Accepted,
    CacheSaved,
    Cancel,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Finished,
    FinishReason,
    FrontMessage,
    Generate,
    Hello,
    Prepare,
    Prepared,
    Refused,
    SaveCache,
    Scored,
    Status,
    Step,
    Stop,
    Switch,
    Switched,
    TokenEvent,
    Tokenize,
    Tokenized,
)
from lamella.batching.process import Send, main
from lamella.batching.settings import EngineSettings
from lamella.core.errors import EngineFailed

DEFAULT_MAX_TOKENS = 20
_MISBEHAVIOUR = re.compile(r"(abort|exit|orphan|hang|raise)@(\d+)")


def expected_tokens(prompt: str, n_tokens: int, variant: str = "large") -> list[int]:
    """What a request for ``prompt`` gets."""
    return [_token(prompt, position, variant) for position in range(n_tokens)]


def _token(prompt: str, position: int, variant: str) -> int:
    return zlib.crc32(f"{variant}/{prompt}/{position}".encode()) % 50_000


def misbehave(how: str) -> None:
    """Do what a prompt asks for."""
    sys.stderr.write(f"fake engine: {how} was asked for\n")
    sys.stderr.flush()
    if how == "abort":
        os.abort()
    if how == "exit":
        os._exit(7)
    if how == "orphan":
        left = subprocess.Popen(["sleep", "1000"], close_fds=False)
        sys.stderr.write(f"left {left.pid}\n")
        sys.stderr.flush()
        os._exit(7)
    if how == "raise":
        raise RuntimeError("the fake loop fails")
    time.sleep(1000)


class FakeLoop:
    """Serves ``n_sequences`` requests at once, the first that came first."""

    def __init__(self, settings: EngineSettings, send: Send, step_seconds: float) -> None:
        self._settings, self._send, self._step_seconds = settings, send, step_seconds
        self._inbox: queue.SimpleQueue[FrontMessage] = queue.SimpleQueue()
        self._requests: dict[int, Generate] = {}
        self._arrived: dict[int, float] = {}
        self._endless: set[int] = set()
        self._variant = settings.variant or "large"
        folder = settings.cache_folder
        self._n_found = int(Path(folder, "cells").read_text()) if folder else 0
        self._step_began = 0.0
        self._n_steps = self._n_switches = 0

    def hello(self) -> Hello:
        protocol = PROTOCOL_VERSION + (self._settings.store == "old")
        return Hello(
            protocol=protocol,
            pid=os.getpid(),
            model="fake",
            architecture="fake",
            variant=self._variant,
            variants=[],
            n_ctx=self._settings.n_ctx,
            n_cells=0,
            n_sequences=self._settings.n_sequences,
            n_vocabulary=50_000,
            n_trained=0,
            has_chat=False,
            has_embeddings=True,
            load_seconds=0.0,
            n_taken_over=self._n_found,
        )

    def receive(self, message: FrontMessage) -> None:
        if isinstance(message, Generate) and "unreadable" in str(message.prompt):
            raise ValueError("this prompt cannot be read")
        self._inbox.put(message)

    def run(self) -> None:
        while True:
            try:
                message = self._inbox.get(block=not self._requests)
            except queue.Empty:
                self._step()
                continue
            if isinstance(message, Stop):
                return
            self._take(message)

    def status(self) -> Status:
        began = self._step_began
        return Status(
            variant=self._variant,
            step_seconds_now=time.monotonic() - began if began else 0.0,
            n_running=len(self._requests),
            n_waiting=len(self._endless),
            n_parked=0,
            cells_used=0,
            n_steps=self._n_steps,
            n_prompt_tokens=0,
            n_cached_tokens=0,
            n_generated_tokens=0,
            n_switches=self._n_switches,
            switch_seconds=0.0,
            flip_seconds=0.0,
            mapped_bytes=0,
            private_bytes=0,
            warm=[],
        )

    def close(self) -> None:
        """Nothing is owned."""

    def _take(self, message: FrontMessage) -> None:
        if isinstance(message, Generate):
            self._accept(message)
        elif isinstance(message, Cancel):
            if message.id in self._requests:
                self._finish(message.id, "cancelled")
            self._endless.discard(message.id)
        elif isinstance(message, Embed):
            if "abort" in message.inputs:
                misbehave("abort")
            if "never" in message.inputs:
                self._endless.add(message.id)
                return
            vectors = [[float(len(text))] for text in message.inputs]
            self._send(Embedded(id=message.id, vectors=vectors, prompt_tokens=len(vectors)))
        elif isinstance(message, Tokenize):
            self._send(Tokenized(id=message.id, tokens=list(message.text.encode())))
        elif isinstance(message, Detokenize):
            self._send(Detokenized(id=message.id, text=bytes(message.tokens).decode()))
        elif isinstance(message, Switch):
            self._switch(message)
        elif isinstance(message, SaveCache):
            self._save(message)
        elif isinstance(message, Prepare):
            self._send(Prepared(id=message.id, variant=message.variant, seconds=0.0))

    def _accept(self, message: Generate) -> None:
        if message.prompt == "overlong":
            self._send(Finished(id=message.id, reason="stop", text="x" * (FRAME_LIMIT_BYTES + 1)))
            return
        if message.prompt == "refuse":
            self._send(Refused(id=message.id, why="invalid", message="the fake refuses"))
            return
        self._send(Accepted(id=message.id, prompt_tokens=len(str(message.prompt))))
        if message.echo:
            self._send(Scored(id=message.id, text=str(message.prompt)))
        self._requests[message.id] = message
        self._arrived[message.id] = time.monotonic()

    def _save(self, message: SaveCache) -> None:
        """The number of its requests is its cache; with none it cannot be saved, and with 13 it never is."""
        n = len(self._requests)
        if not n:
            self._send(Refused(id=message.id, why="failed", message="there is nothing to save"))
        elif n != 13:
            Path(message.folder, "cells").write_text(str(n))
            self._send(CacheSaved(id=message.id, n_cells=n, n_bytes=1, seconds=0.0))

    def _switch(self, message: Switch) -> None:
        if message.variant == "bad":
            misbehave("abort")
        if message.variant == "missing":
            self._send(Refused(id=message.id, why="unknown_variant", message="no such variant"))
            return
        before, self._variant = self._variant, message.variant
        self._n_switches += 1
        self._send(
            Switched(
                id=message.id,
                before=before,
                after=self._variant,
                n_weights=1,
                n_shards=1,
                stall_seconds=0.0,
                prepare_seconds=0.0,
            )
        )

    def _step(self) -> None:
        self._step_began = time.monotonic()
        time.sleep(self._step_seconds)
        if self._variant == "later":
            misbehave("abort")
        running = list(self._requests.values())[: self._settings.n_sequences]
        for variant in sorted({r.variant or self._variant for r in running}):
            events = [e for r in running if (r.variant or self._variant) == variant for e in self._write(r, variant)]
            if events:
                self._send(Step(variant, events))
        for request in running:
            self._end(request.id)
        self._n_steps += 1
        self._step_began = 0.0

    def _write(self, request: Generate, variant: str) -> list[TokenEvent]:
        prompt, n_written = str(request.prompt), len(request.generated)
        for how, position in _MISBEHAVIOUR.findall(prompt):
            if n_written == int(position):
                misbehave(how)
        if n_written >= _most_tokens(request):
            return []
        token = _token(prompt, n_written, variant)
        self._requests[request.id] = msgspec.structs.replace(request, generated=[*request.generated, token])
        return [TokenEvent(request.id, token, f"{token} ")]

    def _end(self, number: int) -> None:
        request = self._requests[number]
        deadline = request.deadline_seconds
        if len(request.generated) >= _most_tokens(request):
            self._finish(number, "length")
        elif deadline is not None and time.monotonic() >= self._arrived[number] + deadline:
            self._finish(number, "deadline")

    def _finish(self, number: int, reason: FinishReason) -> None:
        request = self._requests.pop(number)
        self._send(
            Finished(
                id=number,
                reason=reason,
                prompt_tokens=len(str(request.prompt)),
                generated_tokens=len(request.generated),
                token_seconds=time.monotonic() - self._arrived.pop(number),
            )
        )


def _most_tokens(request: Generate) -> int:
    return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


def open_fake(settings: EngineSettings, send: Send, step_seconds: float = 0.0) -> FakeLoop:
    """Load, or fail as ``settings.store`` says."""
    how = settings.store
    if how in ("abort", "exit") or (how.startswith("/") and Path(how).exists()):
        misbehave("abort" if how != "exit" else how)
    if how == "refuse":
        raise EngineFailed("the fake store has no model")
    if how == "raise":
        raise ValueError("a fault in loading")
    if how == "slow":
        time.sleep(1000)
    return FakeLoop(settings, send, step_seconds)


if __name__ == "__main__":
    *options, descriptor = sys.argv[1:]
    pause = float(options[0]) if options else 0.0
    main(descriptor, lambda settings, send: open_fake(settings, send, pause))
