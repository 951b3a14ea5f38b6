"""The options of ``lamella serve``, in the groups that ``--help`` lists, and what each group says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast, get_args

import msgspec

from lamella import api
from lamella.batching.settings import EngineSettings, Pooling
from lamella.cli.engine_shape import ShapeFlags
from lamella.cli.objectives import objectives_of_options, usual_class
from lamella.cli.options import option_under
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.core.units import parse_bytes
from lamella.qos.controller import HOLD_SECONDS, check_hold
from lamella.qos.objectives.stated import Objectives
from lamella.qos.policies.named import DEFAULT_POLICY, KNOWN, check_policy_name
from lamella.serving.keys import KeyRing
from lamella.serving.settings import DEFAULT_PORT, FrontSettings, Limits

POOLINGS = get_args(Pooling)
NO_POLICY = "off"
_server_option, _engine_option, _limit_option = option_under("Server"), option_under("Engine"), option_under("Limits")
_objective_option = option_under("Objectives: a policy changes the variant so that they are kept")


@dataclass(frozen=True)
class LimitFlags:
    """What one request may ask for, and how many may wait."""

    queue: Annotated[int, _limit_option(help="Requests that may wait; more get 429.")] = 64
    max_prompt_tokens: Annotated[int | None, _limit_option(help="Of one prompt.  Default: what --context holds.")] = (
        None
    )
    max_output_tokens: Annotated[int | None, _limit_option(help="Of one answer.  Default: what --context holds.")] = (
        None
    )
    max_body: Annotated[str, _limit_option(help="Size of a request.")] = "8MiB"

    @property
    def limits(self) -> Limits:
        """Of one request.

        Raises:
            InvalidRequest: a size that is none.
        """
        return Limits(parse_bytes(self.max_body), self.max_prompt_tokens, self.max_output_tokens)


@dataclass(frozen=True)
class ServerFlags:
    """Where the front listens, who may ask, and what it shows."""

    host: Annotated[str, _server_option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _server_option(min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT
    keys: Annotated[
        Path | None,
        _server_option(
            help="File of API keys, one 'user:KEY' or 'admin:KEY' a line.  Default: the variable LAMELLA_API_KEYS."
        ),
    ] = None
    name: Annotated[
        str,
        _server_option(
            help="What requests call the model.  Default: 'smollm2' for that, else the name of file or folder.",
            show_default=False,
        ),
    ] = ""
    alias: Annotated[list[str] | None, _server_option(help="A further name of the model; may be repeated.")] = None
    cors: Annotated[
        list[str] | None, _server_option(help="Web page whose scripts may ask ('*': all); may be repeated.")
    ] = None
    certificate: Annotated[Path | None, _server_option(help="PEM file for TLS; with --private-key.")] = None
    private_key: Annotated[Path | None, _server_option(help="PEM file.")] = None
    dashboard: Annotated[
        bool, _server_option("--dashboard/--no-dashboard", help="A page at / that shows what runs (extra 'dashboard').")
    ] = True
    access_log: Annotated[bool, _server_option("--access-log", help="One line a request.")] = False
    drain_seconds: Annotated[float, _server_option(help="How long answers may go on after SIGTERM.")] = 30.0

    def front(self, limits: Limits) -> FrontSettings:
        """The settings of the front.

        Raises:
            InvalidRequest: keys or certificates that cannot be used.
        """
        return FrontSettings(
            name=self.name,
            host=self.host,
            port=self.port,
            keys=key_ring(self.keys),
            aliases=tuple(self.alias or ()),
            limits=limits,
            cors_origins=tuple(self.cors or ()),
            certificate=self.certificate,
            private_key=self.private_key,
            drain_seconds=self.drain_seconds,
            dashboard=self.dashboard,
            access_log=self.access_log,
        )


@dataclass(frozen=True)
class EngineFlags:
    """How the engine runs, beside its shape; of it ``--memory`` bounds only the cells."""

    memory: Annotated[
        str | None,
        _engine_option(
            help="Most memory of the engine process, as 600MiB: weights, KV cache, buffers and all; default: no limit."
        ),
    ] = None
    warm: Annotated[
        int | None,
        _engine_option(
            help="Variants that stay in memory, the running one included.  "
            "Default: 2; with objectives, all that half of the free memory holds."
        ),
    ] = None
    pooling: Annotated[str, _engine_option(help="Embeddings: auto, mean, cls, last, off.")] = "auto"
    prompt_cache: Annotated[
        str | None,
        _engine_option(
            help="Memory for chats that left the KV cache, as 512MiB or 0.  "
            "Default: an eighth of what is free, at most 1GiB; none with --memory."
        ),
    ] = None
    check: Annotated[bool, _engine_option("--check", help="Verify shards before they are used.")] = False

    def settings(self, shape: ShapeFlags) -> EngineSettings:
        """All but what is served, which may take long to find.

        Raises:
            InvalidRequest: an option that has no meaning, or two that exclude each other.
        """
        n_warm = EngineSettings(store="").n_warm if self.warm is None else self.warm
        if n_warm < 1:
            raise InvalidRequest(f"--warm must be at least 1, not {n_warm}")
        if self.pooling not in POOLINGS:
            raise InvalidRequest(f"unknown pooling '{self.pooling}'; known: {', '.join(POOLINGS)}")
        found = msgspec.structs.replace(
            shape.settings(),
            n_warm=n_warm,
            memory_bytes=parse_bytes(self.memory) if self.memory else 0,
            prompt_cache_bytes=_bytes_or_none(self.prompt_cache),
            check=self.check,
            pooling=cast(Pooling, self.pooling),
        )
        found.check_possible()
        return found


@dataclass(frozen=True)
class ObjectiveFlags:
    """What is promised, and the policy that keeps it."""

    objectives: Annotated[Path | None, _objective_option(help="TOML file of objectives (docs/qos.md).")] = None
    class_: Annotated[
        list[str] | None,
        _objective_option(
            "--class",
            metavar="NAME:FIELD=NUMBER,...",
            help="Objectives of a class: ttft_p95_ms, tpot_p95_ms, max_kl, priority; may be repeated.",
        ),
    ] = None
    ttft_p95: Annotated[
        float | None, _objective_option(help="Milliseconds to the first token, for 95 % of the requests.")
    ] = None
    token_p95: Annotated[float | None, _objective_option(help="Milliseconds for each further token, for 95 %.")] = None
    quality_floor: Annotated[float | None, _objective_option(help="Largest KL of a variant that runs.")] = None
    power: Annotated[float | None, _objective_option(help="Most watts.")] = None
    policy: Annotated[
        str, _objective_option(help=f"One of {', '.join(KNOWN)}; off: only hands change the variant.")
    ] = DEFAULT_POLICY
    profile: Annotated[
        Path | None,
        _objective_option(
            help="File of a profile.  Default: what was measured here before, or is now ('lamella profile STORE')."
        ),
    ] = None
    hold: Annotated[
        float | None,
        _objective_option(
            help=f"Seconds that a switch by hand holds the policy.  Default: {HOLD_SECONDS:.0f}; for ever where "
            "nothing is promised.",
            show_default=False,
        ),
    ] = None

    def check_profile(self) -> None:
        """Say now what is wrong with a file that is named, and not after minutes of building.

        Raises:
            ArtifactError: it cannot be read, or is no profile.
        """
        if self.profile is not None:
            api.read_profile(self.profile)

    @property
    def has_policy(self) -> bool:
        """Whether a policy may change the variant."""
        return self.policy != NO_POLICY

    @property
    def wanted(self) -> Objectives | None:
        """What is promised; None for nothing.

        Raises:
            InvalidRequest: what has no meaning.
        """
        check_hold(self.hold)
        if self.has_policy:
            check_policy_name(self.policy)  # also where no objectives ask for one
        promised = [*(self.class_ or ()), *usual_class(self.ttft_p95, self.token_p95, self.quality_floor)]
        if not (self.objectives or promised or self.power is not None):
            return None
        if not self.has_policy:
            raise InvalidRequest("--policy off keeps no objectives; leave one of the two out")
        return objectives_of_options(self.objectives, promised, power=self.power)


def key_ring(file: Path | None) -> KeyRing:
    """Who may ask: by a file, or by the environment.

    Raises:
        InvalidRequest: what is meant to have keys has none, or cannot be read.
    """
    if file is not None:
        return KeyRing.read(file)
    said = Config.from_environment(os.environ).api_keys
    return KeyRing() if said is None else KeyRing.needed(said, "LAMELLA_API_KEYS")


def _bytes_or_none(size: str | None) -> int | None:
    """A size, which may be 0; None where none is said."""
    if size is None:
        return None
    return 0 if size.strip() == "0" else parse_bytes(size)
