"""``lamella plan``: how many bits each layer gets in the memory there is."""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from lamella import api
from lamella.cli.constraints import AtLeastOption, AvoidOption, FusedFlag, OnlyOption, read_constraints
from lamella.cli.deliver import deliver
from lamella.cli.groups import takes_groups
from lamella.cli.numbers import MOST_SEQUENCES, MOST_TOKENS
from lamella.cli.options import KvTypeOption, PlotOption, SchemeOption, output_option
from lamella.cli.output import JsonFlag, bar, note, print_json, progress, say, stdout, table
from lamella.config import Config
from lamella.core.artifacts import Measurement, Plan, to_plain
from lamella.core.errors import DoesNotFit
from lamella.core.units import format_bytes, format_seconds
from lamella.measuring import MeasureSettings
from lamella.planning.constraints import Constraints
from lamella.planning.policies import METRICS, POLICIES
from lamella.planning.words import layer_words, plan_words
from lamella.report.plots import plot_plan
from lamella.resources.waiting import Waiting


@dataclass(frozen=True)
class SizeFlags:
    """How large a plan may be."""

    memory: Annotated[
        str | None, typer.Option(help="Memory to stay within, such as 6GiB. Default: what the device has free.")
    ] = None
    average_bits: Annotated[
        float | None, typer.Option(help="In place of --memory: mean nominal bits of the layers, as LSAQ counts.")
    ] = None
    bits_per_weight: Annotated[
        float | None, typer.Option(help="In place of --memory: stored bits over all weights, at most.")
    ] = None


@dataclass(frozen=True)
class PolicyFlags:
    """What single policies are asked."""

    alpha: Annotated[float | None, typer.Option(help="Of policy alpha: in (0, 1], smaller is more aggressive.")] = None
    precision: Annotated[
        str | None, typer.Option(help="Of policy uniform: fp16, int8 ... int2, or a ggml type. Default: what fits.")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Of policy random: of the order of the layers. Default: 0.")] = None
    mix: Annotated[
        str | None, typer.Option(help="Of policy stock: a mix that llama-quantize knows, such as Q4_K_M.")
    ] = None
    imatrix: Annotated[
        Path | None, typer.Option(help="Of policy stock: the importance matrix that lamella build will be given.")
    ] = None
    outside: Annotated[
        str | None, typer.Option(help="Precision of embedding and head, or 'keep'. Default: the policy's.")
    ] = None


@dataclass(frozen=True)
class KnapsackFlags:
    """What policy knapsack is asked."""

    file_size: Annotated[
        str | None, typer.Option(help="Of knapsack: size of one GGUF file of the plan, such as 80MB.")
    ] = None
    kl: Annotated[
        float | None, typer.Option(help="Of knapsack: the smallest plan of at most this predicted KL divergence.")
    ] = None
    ms_per_token: Annotated[
        float | None, typer.Option(help="Of knapsack: most milliseconds a token, in matrix products on this machine.")
    ] = None
    prompt_tokens_per_second: Annotated[
        float | None, typer.Option(help="Of knapsack: slowest reading of a prompt, in matrix products.")
    ] = None
    avoid: AvoidOption = None
    only: OnlyOption = None
    at_least: AtLeastOption = None
    fused: FusedFlag = False
    exact: Annotated[bool, typer.Option("--exact", help="Of knapsack: prove the plan by integer program.")] = False

    @property
    def wants_speed(self) -> bool:
        return self.ms_per_token is not None or self.prompt_tokens_per_second is not None

    @property
    def constraints(self) -> Constraints | None:
        """What a tensor may be; None for anything.

        Raises:
            InvalidRequest: an unknown type, or no ``PATTERN=TYPE``.
        """
        return read_constraints(self.avoid, self.only, self.at_least, self.fused)

    @property
    def has_limit(self) -> bool:
        return self.wants_speed or self.file_size is not None or self.kl is not None


@dataclass(frozen=True)
class RunningFlags:
    """What memory is kept for."""

    context: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_TOKENS, help="Tokens of each sequence to keep memory for. Default: up to 4096."),
    ] = None
    parallel: Annotated[int, typer.Option(min=1, max=MOST_SEQUENCES, help="Sequences at once.")] = 1
    kv_type: KvTypeOption = "F16"


@takes_groups
def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Path of a GGUF file, smollm2, or spec:NAME (spec:llama-2-7b ...).")
    ],
    *,
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(POLICIES)}. Default: knapsack; lsaq for spec:NAME and measurements of layers."
        ),
    ] = None,
    size: SizeFlags,
    of_policy: PolicyFlags,
    of_knapsack: KnapsackFlags,
    running: RunningFlags,
    measurement: Annotated[
        Path | None,
        typer.Option(help="What 'lamella measure --out' wrote. Default: measured once a model."),
    ] = None,
    scheme: SchemeOption = "block",
    out: Annotated[Path | None, output_option(help="Write the plan to this file.")] = None,
    plot: PlotOption = None,
    device: Annotated[str | None, typer.Option(help="Device whose memory counts.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until memory is free, instead of failing.")] = False,
    timeout: Annotated[float | None, typer.Option(help="With --wait: give up after so many seconds.")] = None,
    json: JsonFlag = False,
) -> None:
    """Decide how many bits each layer gets.

    Exit code 4 if nothing fits; says what is missing and what would fit.
    """
    config = Config.from_environment(os.environ)
    given = api.read_measurement(measurement) if measurement else None
    importance = api.read_importance(of_policy.imatrix) if of_policy.imatrix else None
    policy = policy or api.default_policy(model, scheme, given)
    api.check_plan_arguments(
        policy, given, memory=size.memory, average_bits=size.average_bits, bits_per_weight=size.bits_per_weight,
        seed=of_policy.seed, mix=of_policy.mix, importance=importance, kl=of_knapsack.kl,
        ms_per_token=of_knapsack.ms_per_token, prompt_tokens_per_second=of_knapsack.prompt_tokens_per_second,
    )  # fmt: skip
    if not of_knapsack.has_limit and all(limit is None for limit in astuple(size)):
        _say_device(device or config.device)
    elif device is not None:
        api.devices(device)  # an unknown one is said before minutes of measuring
    try:
        if given is None:
            given = _measured(model, policy, size.memory, running, config, quiet=json)
        prices = None
        if given is not None and of_knapsack.wants_speed:
            with progress("timing kernels", quiet=json):
                prices = api.measured_prices(given.tensors, config.n_threads, cache_folder=config.cache_folder)
        made = api.plan(
            model, policy, memory=size.memory, average_bits=size.average_bits, bits_per_weight=size.bits_per_weight,
            alpha=of_policy.alpha, precision=of_policy.precision, outside=of_policy.outside, seed=of_policy.seed,
            mix=of_policy.mix, importance=importance, file_size=of_knapsack.file_size, kl=of_knapsack.kl,
            ms_per_token=of_knapsack.ms_per_token, prompt_tokens_per_second=of_knapsack.prompt_tokens_per_second,
            prices=prices, exact=of_knapsack.exact, context=running.context, parallel=running.parallel,
            constraints=of_knapsack.constraints,
            kv_type=running.kv_type, scheme=scheme, measurement=given,
            device=device or config.device, wait=wait, timeout_seconds=timeout, on_wait=_say_waiting,
        )  # fmt: skip
    except DoesNotFit as error:
        if json:
            print_json({**to_plain(error.smallest_plan), "fits": False, "error": _error(error)})
            note(f"lamella: {error}")
            raise typer.Exit(error.exit_code) from None
        raise
    deliver(made, out=out, plot=plot, draw=plot_plan, show=show_plan, json=json)


def _measured(
    model: str, policy: str, memory: str | None, running: RunningFlags, config: Config, *, quiet: bool
) -> Measurement | None:
    """What the policy wants measured, by its metric, once a model; None where it looks at no measurement.

    Raises:
        DoesNotFit: nothing fits the memory, whatever would be measured.
    """
    if not api.needs_measuring(model, policy):
        return None
    if memory is not None and policy == "knapsack":
        api.check_memory(model, memory, context=running.context, parallel=running.parallel, kv_type=running.kv_type)
    metric, settings = METRICS[policy], MeasureSettings(n_threads=config.n_threads)
    with progress(f"measuring {metric}", quiet=quiet) as update:
        return api.measure_once(model, metric, config.cache_folder, settings=settings, on_progress=update)


def show_plan(plan: Plan) -> None:
    """What each layer gets, and where the memory goes."""
    say(f"{plan.model.name}: {plan.policy}, {plan_words(plan)}")
    accounting = " (nominal bytes, as LSAQ counts)" if plan.settings.get("accounting") == "nominal" else ""
    say(f"{plan.average_bits:.4g} average bits, {plan.bits_per_weight:.2f} bits per weight as stored{accounting}")
    if plan.predicted_loss is not None:
        say(f"predicted KL divergence {plan.predicted_loss:.4g} nats a token{_speed(plan)}")
    shown = table(">layer", "precision", ">bytes", "importance")
    for layer in plan.layers:
        score = bar(layer.importance) if layer.importance is not None else ""
        shown.add_row(str(layer.layer), layer_words(plan, layer), format_bytes(layer.bytes), score)
    stdout.print(shown)
    if plan.policy in ("knapsack", "stock"):
        outside = {name: kind for name, kind in plan.tensors.items() if not name.startswith("blk.")}
        say(", ".join(f"{name} {kind}" for name, kind in outside.items()))
    need = plan.bytes
    parts = ", ".join(
        f"{label} {format_bytes(n)}"
        for label, n in (("weights", need.weights), ("KV cache", need.kv_cache), ("compute", need.compute),
                         ("reserve", need.reserve))
    )  # fmt: skip
    budget = f" of {format_bytes(plan.budget_bytes)}" if plan.budget_bytes is not None else ""
    say(f"needs {format_bytes(need.total)}{budget}: {parts}")


def _speed(plan: Plan) -> str:
    ms = plan.settings.get("predicted_ms_per_token")
    return "" if ms is None else f", matrix products {ms:.3g} ms a token"


def _say_device(wanted: str | None) -> None:
    chosen = api.devices(wanted)[1]
    if chosen.kind != "cpu":
        note(f"planning for the memory of {chosen.name}; lamella run computes on the CPU so far (--device CPU)")


def _say_waiting(waiting: Waiting) -> None:
    note(f"{format_seconds(waiting.elapsed_seconds)}: {waiting.reason}")


def _error(error: DoesNotFit) -> dict[str, Any]:
    return {"kind": "DoesNotFit", "message": str(error), "exit_code": error.exit_code}
