"""How many bits each layer gets, in the memory at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamella.api.losses import losses_of, measured_prices, weights_bytes
from lamella.api.measuring import measure
from lamella.api.models import OnMeasure, devices, load, load_spec, silent
from lamella.core.artifacts import (
    Measurement,
    Plan,
    check_same_weights,
)
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.core.model import ModelSpec
from lamella.core.precision import Scheme
from lamella.core.units import as_bytes, format_bytes
from lamella.llama.context import ContextOptions
from lamella.llama.imatrix import ImportanceMatrix
from lamella.llama.stock_mix import MIXES, canonical_mix, stock_types
from lamella.measuring import nothing_lost
from lamella.planning.constraints import Constraints, Prices
from lamella.planning.policies import LADDER, METRICS, check_policy, make_plan
from lamella.planning.request import PlanRequest, StockTypes, check_goals, check_limits
from lamella.planning.specs import is_builtin
from lamella.resources.need import default_reserve, file_overhead, spec_overhead
from lamella.resources.waiting import Waiting, wait_until_fits

DEFAULT_CONTEXT = 4096


def default_policy(model: str | Path, scheme: Scheme = "block", measurement: Measurement | None = None) -> str:
    """``knapsack``, where tensors can be looked at one by one; else ``lsaq``: for specifications, for scheme
    ``channel``, and for a measurement of layers.
    """
    if is_builtin(str(model)) or scheme != "block":
        return "lsaq"
    return "knapsack" if measurement is None or measurement.tensors else "lsaq"


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory a plan may use.

    Attributes:
        limit_bytes: what the user allows; None for what the device has free.
        device: name of the device to look at; None for the one with most free memory.
    """

    limit_bytes: int | None = None
    device: str | None = None

    def now(self) -> int:
        """Bytes that may be used at this moment."""
        free = devices(self.device)[1].free_bytes
        return free if self.limit_bytes is None else min(free, self.limit_bytes)

    def allowed(self) -> int:
        """Bytes that may be used once they are free: the user's limit, if there is one."""
        return self.now() if self.limit_bytes is None else self.limit_bytes


@dataclass(frozen=True, slots=True)
class _Goal:
    """What only ``knapsack`` can be asked for; see ``plan``."""

    file_size: str | int | None
    kl: float | None
    ms_per_token: float | None
    prompt_tokens_per_second: float | None
    constraints: Constraints | None
    prices: Prices | None
    exact: bool

    @property
    def has_speed(self) -> bool:
        return self.ms_per_token is not None or self.prompt_tokens_per_second is not None

    @property
    def has_limit(self) -> bool:
        return self.has_speed or self.file_size is not None or self.kl is not None

    def check(self, policy: str) -> None:
        """Refuse, before anything is measured, what another policy cannot do.

        Raises:
            InvalidRequest: the goal of another policy.
        """
        if policy != "knapsack" and (self.has_limit or self.constraints is not None or self.exact):
            raise InvalidRequest(
                f"file size, KL ceiling, speed, constraints and proof belong to policy knapsack, not to {policy}"
            )

    def added_to(
        self, request: PlanRequest, model: str | Path, policy: str, measurement: Measurement | None
    ) -> PlanRequest:
        """The request with this goal.

        Raises:
            InvalidRequest: no measurement of what tensors lose.
        """
        if policy != "knapsack":
            return request
        losses = losses_of(measurement)
        return replace(
            request,
            losses=losses,
            weights_bytes=weights_bytes(model, request.spec, as_bytes(self.file_size)),
            loss_ceiling=self.kl,
            ms_per_token=self.ms_per_token,
            prompt_tokens_per_second=self.prompt_tokens_per_second,
            constraints=self.constraints or Constraints(),
            prices=self.prices or (measured_prices(losses) if self.has_speed else {}),
            exact=self.exact,
        )


def plan(
    model: str | Path,
    policy: str | None = None,
    *,
    memory: str | int | None = None,
    alpha: float | None = None,
    precision: str | None = None,
    outside: str | None = None,
    average_bits: float | None = None,
    bits_per_weight: float | None = None,
    file_size: str | int | None = None,
    kl: float | None = None,
    ms_per_token: float | None = None,
    prompt_tokens_per_second: float | None = None,
    constraints: Constraints | None = None,
    prices: Prices | None = None,
    exact: bool = False,
    seed: int | None = None,
    mix: str | None = None,
    importance: ImportanceMatrix | None = None,
    scheme: Scheme = "block",
    context: int | None = None,
    parallel: int = 1,
    kv_type: str = "F16",
    measurement: Measurement | None = None,
    device: str | None = None,
    wait: bool = False,
    timeout_seconds: float | None = None,
    on_wait: Callable[[Waiting], None] = lambda _: None,
    on_progress: OnMeasure = silent,
) -> Plan:
    """Decide how many bits each layer gets.

    Args:
        model: a path, ``smollm2``, or ``spec:NAME``.
        policy: one of ``planning.policies.POLICIES``; None: ``default_policy``.
        memory: bytes or a size such as ``6GiB``; None, and no other limit: what the device has free, for ``knapsack``,
            ``lsaq``, ``lwq-*``, ``random``, and for ``uniform`` without a precision; the others then plan without a
            limit.
        alpha: aggressiveness of ``alpha``, in (0, 1]; smaller is more aggressive.
        precision: of ``uniform``: a menu name or a ggml type.
        outside: precision of embedding and head, or ``keep``; None: the policy's default.
        average_bits: in place of memory: ceiling of the layers' mean nominal bits.
        bits_per_weight: in place of memory (``knapsack``: or with it): ceiling of the stored bits over all weights.
        file_size: ``knapsack``: bytes or a size of one GGUF file of the plan: weights, and the source's metadata.
        kl: ``knapsack``: the smallest plan that is predicted to lose at most so many nats a token.
        ms_per_token, prompt_tokens_per_second: ``knapsack``: speed of matrix products, by ``prices``.
        constraints: ``knapsack``: types to avoid, floors, fused groups.
        prices: speed of each type; None: measured now (``measured_prices``) if a speed was asked for.
        exact: ``knapsack``: prove the plan by integer program, in seconds instead of milliseconds.
        seed: of ``random``: of the order of the layers; None: 0.
        mix: of ``stock``: a mix of llama-quantize, such as ``Q4_K_M``.
        importance: of ``stock``: the matrix that the plan will be built with; some mixes choose other types then.
        context: tokens for each sequence that memory is kept for; None: up to 4096 (for a specification: LSAQ's
            own arithmetic, whose reserve covers it).
        measurement: what was measured; None: the policy's metric (``planning.policies.METRICS``), on text
            that the model writes, or for a specification the prior of ``planning.importance``.
        wait: wait until memory is free instead of failing (LSAQ's pause).

    Raises:
        DoesNotFit: nothing fits; says by how much.
        InvalidRequest: arguments without a meaning.
        ArtifactError: the measurement or the importance matrix is of another model.
    """
    budget = Budget(as_bytes(memory), device)
    policy = policy or default_policy(model, scheme, measurement)
    check_plan_arguments(
        policy, measurement, memory=memory, average_bits=average_bits, bits_per_weight=bits_per_weight,
        seed=seed, mix=mix, importance=importance,
        kl=kl, ms_per_token=ms_per_token, prompt_tokens_per_second=prompt_tokens_per_second,
    )  # fmt: skip
    base = PlanRequest(
        load_spec(model), scheme=scheme, alpha=alpha, precision=precision, outside=outside,
        average_bits=average_bits, bits_per_weight=bits_per_weight, seed=seed,
        stock=_stock(model, mix, importance) if mix is not None else None,
    )  # fmt: skip
    goal = _Goal(file_size, kl, ms_per_token, prompt_tokens_per_second, constraints, prices, exact)
    goal.check(policy)
    if measurement is None:
        running = {"context": context, "parallel": parallel, "kv_type": kv_type}
        measurement = _measured_now(model, policy, memory, running, on_progress)
    base = goal.added_to(_with_measurement(base, policy, measurement), model, policy, measurement)
    needs = needs_of(model, base.spec, policy, context, parallel, kv_type)

    def try_plan(budget_bytes: int | None) -> Plan:
        return make_plan(policy, replace(needs(base, budget_bytes), budget_bytes=budget_bytes))

    if budget.limit_bytes is None and not _needs_limit(policy, base, goal):
        return try_plan(None)
    return _wait_for(budget, try_plan, timeout_seconds, on_wait) if wait else try_plan(budget.allowed())


def check_memory(
    model: str | Path, memory: str | int, *, context: int | None = None, parallel: int = 1, kv_type: str = "F16"
) -> None:
    """Refuse memory that no plan of a model fits, before minutes are spent on measuring it.

    Raises:
        DoesNotFit: not even the smallest plan does; says what it needs.
    """
    unmeasured = nothing_lost(load_spec(model))
    try:
        plan(
            model, "knapsack", memory=memory, context=context, parallel=parallel, kv_type=kv_type,
            measurement=unmeasured,
        )  # fmt: skip
    except DoesNotFit as refused:
        refused.smallest_plan = replace(refused.smallest_plan, predicted_loss=None)  # nobody measured it
        raise


def check_plan_arguments(
    policy: str,
    measurement: Measurement | None = None,
    *,
    memory: str | int | None = None,
    average_bits: float | None = None,
    bits_per_weight: float | None = None,
    seed: int | None = None,
    mix: str | None = None,
    importance: ImportanceMatrix | None = None,
    kl: float | None = None,
    ms_per_token: float | None = None,
    prompt_tokens_per_second: float | None = None,
) -> None:
    """Refuse at once, before anything is measured, arguments of ``plan`` that do not go together.

    Raises:
        InvalidRequest: says which, and what would do.
    """
    check_policy(policy, measurement.metric if measurement else None)
    check_limits(as_bytes(memory), average_bits, bits_per_weight, together=policy == "knapsack")
    check_goals(kl, ms_per_token, prompt_tokens_per_second)
    if mix is None and policy == "stock":
        raise InvalidRequest(f"policy stock needs a mix of llama-quantize: {', '.join(MIXES)}")
    if mix is not None and policy != "stock":
        raise InvalidRequest(f"a mix is for policy stock, not for {policy}")
    if importance is not None and policy != "stock":
        raise InvalidRequest(f"policy {policy} asks no importance matrix which types to choose; only stock does")
    if seed is not None and policy != "random":
        raise InvalidRequest(f"a seed is for policy random, not for {policy}")
    if measurement is not None and policy in ("random", "stock"):
        raise InvalidRequest(f"policy {policy} looks at no measurement")


def default_name(plan: Plan) -> str:
    """A variant's name after its plan, with the scheme behind it, such as ``-channel``, where it is not ``block``.

    ``alpha-0.5``, ``uniform-int4``, ``lsaq-6.00GiB``, ``lwq-cosine-7bits``, ``random-seed3-5.5bpw``, ``stock-q4_k_m``,
    and ``stock-q4_k_m-imatrix`` where its types were chosen for an importance matrix; ``knapsack-4.50bpw`` and
    ``ladder-4.50bpw`` by the bits that it has, where no memory budget was given.
    """
    if plan.policy == "alpha":
        name = f"alpha-{plan.settings['alpha']:g}"
    elif plan.policy == "uniform":
        name = f"uniform-{plan.layers[0].precision}"
    elif plan.policy == "stock":
        name = f"stock-{plan.settings['mix']}".lower() + ("-imatrix" if plan.settings["imatrix"] == "yes" else "")
    elif plan.policy in ("knapsack", "ladder") and plan.budget_bytes is None:
        name = f"{plan.policy}-{plan.bits_per_weight:.2f}bpw"
    else:
        seed = plan.settings.get("seed")
        name = plan.policy + (f"-seed{seed}" if seed else "") + _limit_name(plan)
    return name if plan.scheme == "block" else f"{name}-{plan.scheme}"


def _limit_name(plan: Plan) -> str:
    """How large the plan was allowed to be, for a name; "" without a limit."""
    if plan.budget_bytes:
        return f"-{format_bytes(plan.budget_bytes)}".replace(" ", "")
    for setting, unit in (("target_average_bits", "bits"), ("target_bits_per_weight", "bpw")):
        if setting in plan.settings:
            return f"-{plan.settings[setting]:g}{unit}"
    return ""


def _stock(model: str | Path, mix: str, importance: ImportanceMatrix | None) -> StockTypes:
    """The types of a mix, by llama.cpp's own dry run."""
    if is_builtin(str(model)):
        raise InvalidRequest(f"policy stock asks llama.cpp about a model file, and {model} is a specification")
    mix, source = canonical_mix(mix), load(model)
    if importance is not None:
        importance.check_model(source.spec.identity, source.spec.tensors)
    with_importance = importance is not None
    return StockTypes(mix, with_importance, stock_types(source.paths, mix, with_importance=with_importance))


def _measured_now(
    model: str | Path, policy: str, memory: str | int | None, running: Mapping[str, Any], on_progress: OnMeasure
) -> Measurement | None:
    """What the policy wants to know, where it wants to know something that can be measured.

    Args:
        running: what ``check_memory`` is told beside the memory, which is looked at before anything is measured.
    """
    if not needs_measuring(model, policy):
        return None
    if memory is not None and policy == "knapsack":
        check_memory(model, memory, **running)
    return measure(model, METRICS[policy], on_progress=on_progress)


def _needs_limit(policy: str, request: PlanRequest, goal: _Goal) -> bool:
    """Whether a plan is for what the device has free where no memory is named."""
    fills_memory = policy in LADDER or policy == "knapsack" or (policy == "uniform" and request.precision is None)
    return fills_memory and not request.has_limit and not goal.has_limit


def _wait_for(
    budget: Budget,
    try_plan: Callable[[int | None], Plan],
    timeout_seconds: float | None,
    on_wait: Callable[[Waiting], None],
) -> Plan:
    """The plan for the memory that is free, as soon as one fits; what does not fit the limit is not waited for."""
    if budget.limit_bytes is not None:
        try_plan(budget.limit_bytes)
    return wait_until_fits(try_plan, budget.now, timeout_seconds=timeout_seconds, on_wait=on_wait)


def _with_measurement(request: PlanRequest, policy: str, measurement: Measurement | None) -> PlanRequest:
    """The request with what was measured of layers; ``knapsack`` looks at tensors (``_Goal``)."""
    if measurement is None:
        return request
    check_same_weights(measurement, request.spec.identity)
    importance = None if policy == "knapsack" else measurement.importance()
    return replace(request, importance=importance, settings={"metric": measurement.metric})


def needs_measuring(model: str | Path, policy: str) -> bool:
    """Whether a policy wants to know the layers' importance, and there are weights to measure it on."""
    return policy in METRICS and not is_builtin(str(model))


def needs_of(
    model: str | Path, spec: ModelSpec, policy: str, context: int | None, parallel: int, kv_type: str
) -> Callable[[PlanRequest, int | None], PlanRequest]:
    """How to add to a request what running needs besides weights; the dry run is made once."""
    is_spec = is_builtin(str(model))
    if is_spec and policy in LADDER and context is None:
        return lambda request, _: request  # LSAQ's own arithmetic
    n_ctx = context if context is not None else min(DEFAULT_CONTEXT, spec.context_length or DEFAULT_CONTEXT)
    options = ContextOptions(n_ctx=n_ctx, n_sequences=parallel, kv_type=kv_type, n_outputs=parallel)
    settings: Mapping[str, int | float | str] = {"context": n_ctx, "parallel": parallel, "kv_type": kv_type.upper()}
    dry_run = spec_overhead(spec, options) if is_spec else file_overhead(load(model).paths, options)

    def add(request: PlanRequest, budget_bytes: int | None) -> PlanRequest:
        overhead = replace(dry_run, reserve_bytes=default_reserve(budget_bytes))
        return replace(request, overhead=overhead, settings={**request.settings, **settings})

    return add
