"""``lamella run``: a chat or a completion in the terminal, and switches while it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from lamella import api
from lamella.cli.chat_loop import ChatLoop
from lamella.cli.chat_partners import EnginePartner
from lamella.cli.describe import describe_stats, describe_switch, describe_times
from lamella.cli.numbers import MOST_TOKENS
from lamella.cli.options import (
    CheckFlag,
    KvTypeOption,
    PromptArgument,
    StopOption,
    SystemOption,
    TargetArgument,
    TemperatureOption,
    split_target,
)
from lamella.cli.output import JsonFlag, note, print_json
from lamella.config import Config
from lamella.core.errors import InvalidRequest
from lamella.llama.context import ContextOptions
from lamella.llama.sampling import SamplingOptions
from lamella.run.chat import Message
from lamella.run.engine import Engine, EngineOptions
from lamella.run.generation import Generation
from lamella.run.layouts import check_policy
from lamella.run.prepared import SwitchReport


def run(
    target: TargetArgument,
    prompt: PromptArgument = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    system: SystemOption = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    temperature: TemperatureOption = 0.8,
    top_k: Annotated[int, typer.Option(help="0 switches it off.")] = 40,
    top_p: Annotated[float, typer.Option(help="1 switches it off.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="0 switches it off.")] = 0.05,
    repeat_penalty: Annotated[float, typer.Option(help="1 switches it off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal texts.")] = 0,
    stop: StopOption = None,
    context: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Tokens that prompt and answer may have together.")
    ] = 4096,
    kv_type: KvTypeOption = "F16",
    layout: Annotated[str, typer.Option(help="auto, mapped (no copies) or repacked (faster, takes memory).")] = "auto",
    warm: Annotated[int, typer.Option(help="Variants kept ready to switch to, the running one included.")] = 2,
    check: CheckFlag = False,
    switch_to: Annotated[str | None, typer.Option(help="With PROMPT: switch to this variant while it answers.")] = None,
    switch_after: Annotated[int, typer.Option(help="Tokens before --switch-to happens.")] = 20,
    json: JsonFlag = False,
) -> None:
    """Talk to a variant; change to another with /switch NAME, also while it is answering."""
    if api.is_model(target):
        raise InvalidRequest(
            f"{target} is a model, and run takes a store: lamella ladder {target} STORE makes one; or talk to "
            f"'lamella serve {target}' by 'lamella chat'"
        )
    folder, variant = split_target(target)
    config = Config.from_environment(os.environ)
    options = EngineOptions(
        context=ContextOptions(n_ctx=context, kv_type=kv_type, n_threads=config.n_threads),
        layout=check_policy(layout),
        n_warm=warm,
        check=check,
    )
    sampling = SamplingOptions(temperature, top_k, top_p, min_p, repeat_penalty, seed=seed)
    if prompt is None and (json or switch_to):
        option = "--json" if json else "--switch-to"
        raise InvalidRequest(f"{option} needs a PROMPT; in a chat there is no single answer, and /switch NAME switches")
    if switch_after < 1:
        raise InvalidRequest(f"--switch-after must be at least 1, not {switch_after}")
    opening = [Message("system", system)] if system else []
    with api.open_engine(folder, variant, options, cache_folder=config.cache_folder) as engine:
        if prompt is None:
            ChatLoop(EnginePartner(engine, sampling, max_tokens, stop or ()), opening).run()
            return
        if switch_to is not None:
            engine.prepare(switch_to)
        if raw:
            generation = engine.generate(prompt, max_tokens=max_tokens, sampling=sampling, stop=stop or ())
        else:
            messages = [*opening, Message("user", prompt)]
            generation = engine.chat(messages, max_tokens=max_tokens, sampling=sampling, stop=stop or ())
        answer = _answer(engine, generation, switch_to, switch_after, quiet=json)
        if json:
            print_json({"store": str(folder), **answer})


def _answer(
    engine: Engine, generation: Generation, switch_to: str | None, switch_after: int, *, quiet: bool
) -> dict[str, Any]:
    """Stream one answer, with at most one switch in it; returns the facts for ``--json``."""
    text: list[str] = []
    token_ms: list[float] = []
    switches: list[dict[str, Any]] = []
    for token in generation:
        text.append(token.text)
        if token.id >= 0:  # the last may be text that was held back, and no token
            token_ms.append(token.seconds * 1e3)
        if not quiet:
            sys.stdout.write(token.text)
            sys.stdout.flush()
        if switch_to is not None and not switches and len(token_ms) >= switch_after:
            report = engine.switch(switch_to)
            switches.append({"after_tokens": len(token_ms), **_switch_fields(report)})
            if not quiet:
                note(f"\n[{describe_switch(report)}]")
    stats = generation.stats
    if not quiet:
        sys.stdout.write("\n")
        note(describe_stats(stats, engine.variant))
        if switches and len(token_ms) > switch_after:
            note(describe_times(token_ms, switch_after))
    if switch_to is not None and not switches:
        note(f"no switch: the answer ended after {len(token_ms)} tokens, --switch-after is {switch_after}")
    return {
        "variant": engine.variant,
        "text": "".join(text),
        "prompt_tokens": stats.n_prompt,
        "generated_tokens": stats.n_generated,
        "finish_reason": stats.finish_reason,
        "prompt_tokens_per_second": stats.prompt_tokens_per_second,
        "tokens_per_second": stats.tokens_per_second,
        "token_ms": token_ms,
        "switches": switches,
    }


def _switch_fields(report: SwitchReport) -> dict[str, Any]:
    return {
        "before": report.before,
        "after": report.after,
        "weights": report.n_weights,
        "shards": report.n_shards,
        "switch_ms": report.switch_seconds * 1e3,
        "prepare_ms": report.prepare_seconds * 1e3,
        "repacked_bytes": report.repacked_bytes,
    }
