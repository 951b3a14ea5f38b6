"""``lamella serve``: an OpenAI-compatible server whose model changes precision under it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import msgspec
import typer

from lamella import api
from lamella.batching.settings import EngineSettings, Pooling
from lamella.batching.steps import LONGEST_STEP_SECONDS
from lamella.cli.objectives import objectives_of_options, usual_class
from lamella.cli.opening import opening_lines
from lamella.cli.output import note
from lamella.cli.served import find_served
from lamella.config import Config
from lamella.core.collector import keep_what_is_there
from lamella.core.errors import InvalidRequest
from lamella.core.listening import listen
from lamella.core.units import parse_bytes
from lamella.qos.controller import HOLD_SECONDS
from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.named import DEFAULT_POLICY, KNOWN
from lamella.run.layouts import check_policy
from lamella.store.store import Store

if TYPE_CHECKING:
    from lamella.serving.keys import KeyRing

POOLINGS = get_args(Pooling)
DEFAULT_PORT = 8080
SERVER, ENGINE, LIMITS = "Server", "Engine", "Limits"
OBJECTIVES = "Objectives: a policy changes the variant so that they are kept"


def serve(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|STORE[@VARIANT]",
            help="A model: 'smollm2', a GGUF file, hf:OWNER/REPO; or a store, and the variant to begin with.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=SERVER)
    ] = DEFAULT_PORT,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys, one 'user:KEY' or 'admin:KEY' a line.  Default: the variable LAMELLA_API_KEYS.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            help="What requests call the model.  Default: 'smollm2' for that, else the name of file or folder.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = "",
    alias: Annotated[
        list[str] | None, typer.Option(help="A further name of the model; may be repeated.", rich_help_panel=SERVER)
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Web page whose scripts may ask ('*': all); may be repeated.", rich_help_panel=SERVER),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file for TLS; with --private-key.", rich_help_panel=SERVER)
    ] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM file.", rich_help_panel=SERVER)] = None,
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard/--no-dashboard",
            help="A page at / that shows what runs (extra 'dashboard').",
            rich_help_panel=SERVER,
        ),
    ] = True,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="One line a request.", rich_help_panel=SERVER)
    ] = False,
    drain_seconds: Annotated[
        float, typer.Option(help="How long answers may go on after SIGTERM.", rich_help_panel=SERVER)
    ] = 30.0,
    context: Annotated[int, typer.Option(help="Most tokens of one request.", rich_help_panel=ENGINE)] = 4096,
    sequences: Annotated[int, typer.Option(help="Requests that run at once.", rich_help_panel=ENGINE)] = 8,
    cells: Annotated[
        int,
        typer.Option(
            help="Tokens in a KV cache that all requests share; 0: --context for each, if memory is plenty.",
            rich_help_panel=ENGINE,
        ),
    ] = 0,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory of the engine process, as 600MiB: weights, KV cache, buffers and all; default: no limit.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    longest_step: Annotated[
        float,
        typer.Option(
            help="Seconds that a stream may wait for its next token while prompts are read, about.  "
            "Less makes streams smoother and first tokens later.",
            rich_help_panel=ENGINE,
        ),
    ] = LONGEST_STEP_SECONDS,
    kv_type: Annotated[str, typer.Option(help="ggml type of the KV cache.", rich_help_panel=ENGINE)] = "F16",
    rpc: Annotated[
        list[str] | None,
        typer.Option(
            help="Address of an rpc-server of llama.cpp on this machine, whose devices may be used; may be repeated.",
            metavar="HOST:PORT",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device to run on, as 'lamella devices' names it; default: the CPU. Not with --memory.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="How weights are read: auto, mapped, repacked.", rich_help_panel=ENGINE)
    ] = "auto",
    warm: Annotated[
        int, typer.Option(help="Variants that stay in memory, the running one included.", rich_help_panel=ENGINE)
    ] = 2,
    pooling: Annotated[
        str, typer.Option(help="Embeddings: auto, mean, cls, last, off.", rich_help_panel=ENGINE)
    ] = "auto",
    prompt_cache: Annotated[
        str | None,
        typer.Option(
            help="Memory for chats that left the KV cache, as 512MiB or 0.  "
            "Default: an eighth of what is free, at most 1GiB; none with --memory.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    reproducible: Annotated[
        bool,
        typer.Option(
            "--reproducible",
            help="Answers do not depend on what runs beside them, nor on restarts; slower prompts and full batches.",
            rich_help_panel=ENGINE,
        ),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Verify shards before they are used.", rich_help_panel=ENGINE)
    ] = False,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.", rich_help_panel=LIMITS)] = 64,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Of one prompt.  Default: what --context holds.", rich_help_panel=LIMITS)
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(help="Of one answer.  Default: what --context holds.", rich_help_panel=LIMITS)
    ] = None,
    max_body: Annotated[str, typer.Option(help="Size of a request.", rich_help_panel=LIMITS)] = "8MiB",
    objectives: Annotated[
        Path | None, typer.Option(help="TOML file of objectives (docs/qos.md).", rich_help_panel=OBJECTIVES)
    ] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME:FIELD=NUMBER,...",
            help="Objectives of a class: ttft_p95_ms, tpot_p95_ms, max_kl, priority; may be repeated.",
            rich_help_panel=OBJECTIVES,
        ),
    ] = None,
    ttft_p95: Annotated[
        float | None,
        typer.Option(help="Milliseconds to the first token, for 95 % of the requests.", rich_help_panel=OBJECTIVES),
    ] = None,
    token_p95: Annotated[
        float | None,
        typer.Option(help="Milliseconds for each further token, for 95 %.", rich_help_panel=OBJECTIVES),
    ] = None,
    quality_floor: Annotated[
        float | None, typer.Option(help="Largest KL of a variant that runs.", rich_help_panel=OBJECTIVES)
    ] = None,
    power: Annotated[float | None, typer.Option(help="Most watts.", rich_help_panel=OBJECTIVES)] = None,
    policy: Annotated[
        str, typer.Option(help=f"One of {', '.join(KNOWN)}.", rich_help_panel=OBJECTIVES)
    ] = DEFAULT_POLICY,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="File of a profile.  Default: the one that 'lamella profile STORE' keeps.", rich_help_panel=OBJECTIVES
        ),
    ] = None,
    hold: Annotated[
        float, typer.Option(help="Seconds that a switch by hand holds the policy.", rich_help_panel=OBJECTIVES)
    ] = HOLD_SECONDS,
) -> None:
    """Serve a model, or a store's variants, behind an OpenAI-compatible API.

    A model is measured and gets a few variants the first time (lamella prepare); afterwards it starts in seconds.

    The variant changes while requests run: POST /admin/switch {"variant": "small"}, or /switch small in
    `lamella chat --url URL`.  A request may ask for one by the model name MODEL@VARIANT.  With objectives a policy
    changes it: the best variant that keeps them under the load of the moment.
    """
    engine = engine_settings(
        context,
        sequences,
        cells,
        kv_type,
        memory,
        rpc=rpc or [],
        device=device,
        longest_step=longest_step,
        layout=layout,
        warm=warm,
        pooling=pooling,
        prompt_cache=prompt_cache,
        is_reproducible=reproducible,
        check=check,
    )
    promised = [*(class_ or ()), *usual_class(ttft_p95, token_p95, quality_floor)]
    wanted = objectives_of_options(objectives, promised, power=power) if objectives or promised or power else None
    ring = key_ring(keys)
    listen(host, port).close()  # a taken address is said now, and not after minutes of building
    served = find_served(target, memory, None if rpc else device)  # an RPC server's is not known to others
    engine = msgspec.structs.replace(engine, store=served.store, variant=served.variant, variants=served.variants)
    steering = None
    if wanted is not None:
        engine, steering = _steered(engine, wanted, policy, profile, hold)
    from lamella.dashboard.assets import is_installed
    from lamella.serving.settings import FrontSettings, Limits

    front = FrontSettings(
        name=name or served.name or api.model_name(Store.open(Path(engine.store))),
        host=host,
        port=port,
        keys=ring,
        aliases=tuple(alias or ()),
        limits=Limits(parse_bytes(max_body), max_prompt_tokens, max_output_tokens),
        cors_origins=tuple(cors or ()),
        certificate=certificate,
        private_key=private_key,
        drain_seconds=drain_seconds,
        dashboard=dashboard,
        access_log=access_log,
    )

    def say_hello(listening: api.Listening) -> None:
        keep_what_is_there()
        for line in opening_lines(listening, len(ring), has_dashboard=dashboard and is_installed()):
            note(line)

    folder = Config.from_environment(os.environ).cache_folder
    run_in_loop(
        api.serve(
            engine,
            front,
            steering=steering,
            max_queue=queue,
            cache_folder=folder,
            on_listening=say_hello,
            on_line=note,
        )
    )


def _steered(
    engine: EngineSettings, wanted: Objectives, policy: str, profile: Path | None, hold_seconds: float
) -> tuple[EngineSettings, api.Steering]:
    """Engine and policy under one memory ceiling: the lower one of what the engine and the objectives say."""
    ceilings = [n for n in (engine.memory_bytes, wanted.memory_bytes) if n]
    wanted = replace(wanted, memory_bytes=min(ceilings, default=None))
    engine = msgspec.structs.replace(engine, memory_bytes=min(ceilings, default=0))
    folder = Config.from_environment(os.environ).cache_folder
    return engine, api.steering(engine, wanted, policy, profile=profile, hold_seconds=hold_seconds, cache_folder=folder)


def run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    """In uvloop's event loop where there is one: the front shares the processor with the model."""
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(work)
        return
    import uvloop

    uvloop.run(work)


def key_ring(file: Path | None) -> KeyRing:
    """Who may ask: by a file, or by the environment.

    Raises:
        InvalidRequest: what is meant to have keys has none, or cannot be read.
    """
    from lamella.serving.keys import KeyRing

    if file is not None:
        return KeyRing.read(file)
    said = Config.from_environment(os.environ).api_keys
    return KeyRing() if said is None else KeyRing.needed(said, "LAMELLA_API_KEYS")


def engine_settings(
    context: int,
    sequences: int,
    cells: int,
    kv_type: str,
    memory: str | None,
    *,
    rpc: Sequence[str] = (),
    device: str | None = None,
    longest_step: float = LONGEST_STEP_SECONDS,
    layout: str = "auto",
    warm: int,
    pooling: str = "auto",
    prompt_cache: str | None = None,
    is_reproducible: bool = False,
    check: bool = False,
) -> EngineSettings:
    """What the options of a command say of the engine: all but what is served, which may take long to find.

    Raises:
        InvalidRequest: an option that has no meaning.
    """
    config = Config.from_environment(os.environ)
    if sequences < 1 or warm < 1:
        raise InvalidRequest(f"--sequences and --warm must be at least 1, not {sequences} and {warm}")
    if not longest_step > 0:
        raise InvalidRequest(f"--longest-step must be positive seconds, not {longest_step:g}")
    if pooling not in POOLINGS:
        raise InvalidRequest(f"unknown pooling '{pooling}'; known: {', '.join(POOLINGS)}")
    return EngineSettings(
        store="",
        n_ctx=context,
        n_cells=cells,
        n_sequences=sequences,
        longest_step_seconds=longest_step,
        kv_type=kv_type,
        n_threads=config.n_threads,
        layout=check_policy(layout),
        n_warm=warm,
        rpc=list(rpc),
        device=device,
        memory_bytes=parse_bytes(memory) if memory else 0,
        prompt_cache_bytes=_bytes_or_none(prompt_cache),
        is_reproducible=is_reproducible,
        check=check,
        pooling=cast(Pooling, pooling),
        kernel_file=str(config.cache_folder / "kernels.json"),
    )


def _bytes_or_none(size: str | None) -> int | None:
    """A size, which may be 0; None where none is said."""
    if size is None:
        return None
    return 0 if size.strip() == "0" else parse_bytes(size)
