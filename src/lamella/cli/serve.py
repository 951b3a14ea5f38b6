"""``lamella serve``: an OpenAI-compatible server whose model changes precision under it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import msgspec
import typer

from lamella import api
from lamella.batching.settings import EngineSettings, Pooling
from lamella.batching.steps import LONGEST_STEP_SECONDS
from lamella.cli.objectives import objectives_of_options, usual_class
from lamella.cli.opening import greeting
from lamella.cli.options import option_under
from lamella.cli.output import note
from lamella.cli.served import find_served
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.listening import listen
from lamella.core.precision import CACHE_TYPES
from lamella.core.units import parse_bytes
from lamella.qos.controller import HOLD_SECONDS
from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.named import DEFAULT_POLICY, KNOWN, check_policy_name
from lamella.run.layouts import check_policy
from lamella.serving.keys import KeyRing
from lamella.serving.settings import DEFAULT_PORT, FrontSettings, Limits
from lamella.store.store import Store

POOLINGS = get_args(Pooling)
_server_option, _engine_option, _limit_option = option_under("Server"), option_under("Engine"), option_under("Limits")
_objective_option = option_under("Objectives: a policy changes the variant so that they are kept")


def serve(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|STORE[@VARIANT]",
            help="A model: 'smollm2', a GGUF file, hf:OWNER/REPO; or a store, and the variant to begin with.",
        ),
    ],
    host: Annotated[str, _server_option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, _server_option(min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT,
    keys: Annotated[
        Path | None,
        _server_option(
            help="File of API keys, one 'user:KEY' or 'admin:KEY' a line.  Default: the variable LAMELLA_API_KEYS."
        ),
    ] = None,
    name: Annotated[
        str,
        _server_option(
            help="What requests call the model.  Default: 'smollm2' for that, else the name of file or folder.",
            show_default=False,
        ),
    ] = "",
    alias: Annotated[list[str] | None, _server_option(help="A further name of the model; may be repeated.")] = None,
    cors: Annotated[
        list[str] | None, _server_option(help="Web page whose scripts may ask ('*': all); may be repeated.")
    ] = None,
    certificate: Annotated[Path | None, _server_option(help="PEM file for TLS; with --private-key.")] = None,
    private_key: Annotated[Path | None, _server_option(help="PEM file.")] = None,
    dashboard: Annotated[
        bool, _server_option("--dashboard/--no-dashboard", help="A page at / that shows what runs (extra 'dashboard').")
    ] = True,
    access_log: Annotated[bool, _server_option("--access-log", help="One line a request.")] = False,
    drain_seconds: Annotated[float, _server_option(help="How long answers may go on after SIGTERM.")] = 30.0,
    context: Annotated[int, _engine_option(help="Most tokens of one request.")] = 4096,
    sequences: Annotated[int, _engine_option(help="Requests that run at once.")] = 8,
    cells: Annotated[
        int,
        _engine_option(
            help="Tokens in a KV cache that all requests share; 0: --context for each, if memory is plenty."
        ),
    ] = 0,
    memory: Annotated[
        str | None,
        _engine_option(
            help="Most memory of the engine process, as 600MiB: weights, KV cache, buffers and all; default: no limit."
        ),
    ] = None,
    longest_step: Annotated[
        float,
        _engine_option(
            help="Seconds that a stream may wait for its next token while prompts are read, about.  "
            "Less makes streams smoother and first tokens later."
        ),
    ] = LONGEST_STEP_SECONDS,
    kv_type: Annotated[str, _engine_option(help="ggml type of the KV cache.")] = "F16",
    rpc: Annotated[
        list[str] | None,
        _engine_option(
            help="Address of an rpc-server of llama.cpp on this machine, whose devices may be used; may be repeated.",
            metavar="HOST:PORT",
        ),
    ] = None,
    device: Annotated[
        str | None,
        _engine_option(help="Device to run on, as 'lamella devices' names it; default: the CPU. Not with --memory."),
    ] = None,
    layout: Annotated[str, _engine_option(help="How weights are read: auto, mapped, repacked.")] = "auto",
    warm: Annotated[int, _engine_option(help="Variants that stay in memory, the running one included.")] = 2,
    pooling: Annotated[str, _engine_option(help="Embeddings: auto, mean, cls, last, off.")] = "auto",
    prompt_cache: Annotated[
        str | None,
        _engine_option(
            help="Memory for chats that left the KV cache, as 512MiB or 0.  "
            "Default: an eighth of what is free, at most 1GiB; none with --memory."
        ),
    ] = None,
    reproducible: Annotated[
        bool,
        _engine_option(
            "--reproducible",
            help="Answers do not depend on what runs beside them, nor on restarts; slower prompts and full batches.",
        ),
    ] = False,
    check: Annotated[bool, _engine_option("--check", help="Verify shards before they are used.")] = False,
    queue: Annotated[int, _limit_option(help="Requests that may wait; more get 429.")] = 64,
    max_prompt_tokens: Annotated[
        int | None, _limit_option(help="Of one prompt.  Default: what --context holds.")
    ] = None,
    max_output_tokens: Annotated[
        int | None, _limit_option(help="Of one answer.  Default: what --context holds.")
    ] = None,
    max_body: Annotated[str, _limit_option(help="Size of a request.")] = "8MiB",
    objectives: Annotated[Path | None, _objective_option(help="TOML file of objectives (docs/qos.md).")] = None,
    class_: Annotated[
        list[str] | None,
        _objective_option(
            "--class",
            metavar="NAME:FIELD=NUMBER,...",
            help="Objectives of a class: ttft_p95_ms, tpot_p95_ms, max_kl, priority; may be repeated.",
        ),
    ] = None,
    ttft_p95: Annotated[
        float | None, _objective_option(help="Milliseconds to the first token, for 95 % of the requests.")
    ] = None,
    token_p95: Annotated[float | None, _objective_option(help="Milliseconds for each further token, for 95 %.")] = None,
    quality_floor: Annotated[float | None, _objective_option(help="Largest KL of a variant that runs.")] = None,
    power: Annotated[float | None, _objective_option(help="Most watts.")] = None,
    policy: Annotated[str, _objective_option(help=f"One of {', '.join(KNOWN)}.")] = DEFAULT_POLICY,
    profile: Annotated[
        Path | None, _objective_option(help="File of a profile.  Default: the one that 'lamella profile STORE' keeps.")
    ] = None,
    hold: Annotated[float, _objective_option(help="Seconds that a switch by hand holds the policy.")] = HOLD_SECONDS,
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
    check_policy_name(policy)  # also where no objectives ask for one
    if queue < 0:
        raise InvalidRequest(f"--queue must be at least 0, not {queue}")
    promised = [*(class_ or ()), *usual_class(ttft_p95, token_p95, quality_floor)]
    wanted = objectives_of_options(objectives, promised, power=power) if objectives or promised or power else None
    ring = key_ring(keys)
    front = FrontSettings(
        name=name,
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
    front.check_certificate()
    listen(host, port).close()  # a taken address is said now, and not after minutes of building
    served = find_served(target, memory, None if rpc else device)  # an RPC server's is not known to others
    front = replace(front, name=name or served.name or api.model_name(Store.open(Path(served.store))))
    engine = msgspec.structs.replace(engine, store=served.store, variant=served.variant, variants=served.variants)
    steering = None
    if wanted is not None:
        engine, steering = _steered(engine, wanted, policy, profile, hold)
    run_in_loop(
        api.serve(
            engine,
            front,
            steering=steering,
            max_queue=queue,
            cache_folder=Config.from_environment(os.environ).cache_folder,
            on_listening=greeting(len(ring), has_dashboard=dashboard),
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
    if context < 1 or (cells and cells < context):
        raise InvalidRequest(f"--context must be at least 1 and --cells 0 or at least that, not {context} and {cells}")
    if kv_type.upper() not in CACHE_TYPES:
        raise InvalidRequest(f"'{kv_type}' is no KV cache type; known: {', '.join(CACHE_TYPES)}")
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
