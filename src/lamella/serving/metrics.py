"""Figures for Prometheus: what the front counts itself, and what the engine last reported.

One registry for each application; nothing global.  Tokens are counted here when a request ends, so they survive
restarts of the engine; the engine's own counters begin anew with each process, as Prometheus expects of restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lamella.batching.messages import Finished, Hello, Status
from lamella.qos.live.control import VariantControl
from lamella.serving.engine_client import EngineClient
from lamella.serving.gate import Gate
from lamella.serving.nodes import NodeCollector, NodeFigures

_FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5, 10, 20, 40, 80, 160)
_TOKEN_SECONDS = (0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.048, 0.064, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_UNKNOWN_ROUTE = "other"


@dataclass(frozen=True, slots=True)
class Timing:
    """When a request's tokens came, in seconds of one clock; None before the first."""

    begun: float
    first: float | None
    last: float | None
    n_tokens: int

    @property
    def ttft_seconds(self) -> float | None:
        """To the first token."""
        return None if self.first is None else self.first - self.begun

    @property
    def tpot_seconds(self) -> float | None:
        """Mean between tokens; None of fewer than two."""
        if self.first is None or self.last is None or self.n_tokens < 2:
            return None
        return (self.last - self.first) / (self.n_tokens - 1)


class _Registry(CollectorRegistry):
    """A registry without the times at which each label was first seen: they double the series, and nobody asks."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """The counters of one front."""

    def __init__(
        self,
        client: EngineClient,
        control: VariantControl,
        nodes: Callable[[], Sequence[NodeFigures]] | None = None,
    ) -> None:
        """Begin to count.

        Args:
            control: of the variant.
            nodes: says how the machines are that compute for this server; None where there are none.
        """
        self._registry = _Registry()
        if nodes is not None:
            self._registry.register(NodeCollector(nodes))
        self._requests = Counter("lamella_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        self._tokens = Counter(
            "lamella_tokens",
            "Tokens of ended requests: prompt, cached (those of the prompt that were in the KV cache), generated.",
            ["kind"],
            registry=self._registry,
        )
        self._finished = Counter(
            "lamella_generations", "Generations ended.", ["reason", "priority"], registry=self._registry
        )
        self._first_token = _histogram(
            "time_to_first_token", "From the request to its first token.", _FIRST_TOKEN_SECONDS, self._registry
        )
        self._per_token = _histogram(
            "time_per_output_token", "Mean time between tokens of a request.", _TOKEN_SECONDS, self._registry
        )
        self._registry.register(_EngineFigures(client))
        self._registry.register(_ControlFigures(control))
        ProcessCollector(registry=self._registry)

    def answered(self, route: str, status: int) -> None:
        """A request has its answer."""
        self._requests.labels(route, str(status)).inc()

    def finished(self, end: Finished, timing: Timing, priority: int) -> None:
        """A generation has ended."""
        label = priority_class(priority)
        self._finished.labels(end.reason, label).inc()
        self._tokens.labels("prompt").inc(end.prompt_tokens)
        self._tokens.labels("cached").inc(end.cached_tokens)
        self._tokens.labels("generated").inc(end.generated_tokens)
        if timing.ttft_seconds is not None:
            self._first_token.labels(label).observe(timing.ttft_seconds)
        if timing.tpot_seconds is not None:
            self._per_token.labels(label).observe(timing.tpot_seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class RequestMeter:
    """Counts requests by route and status, and tells the gate of them; ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, gate: Gate) -> None:
        self._app, self._metrics, self._gate = app, metrics, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._gate.request_begins()
        try:
            await self._app(scope, receive, watched)
        finally:
            self._gate.request_ends()
            self._metrics.answered(_route(scope), status)


def _route(scope: Scope) -> str:
    """The route's pattern, so that the label has few values."""
    return getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)


def priority_class(priority: int) -> str:
    """``high``, ``normal`` or ``low``: a label must have few values."""
    return "normal" if priority == 0 else "high" if priority > 0 else "low"


class _EngineFigures(Collector):
    """The client's and the last heartbeat's figures, read when Prometheus asks."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def collect(self) -> Iterable[Metric]:
        client = self._client
        yield _gauge("engine_ready", "Whether an engine answers.", client.is_ready)
        yield _gauge("requests_open", "Generations submitted and not finished.", client.n_open)
        yield _counter("engine_restarts", "Engines started after the first.", client.n_restarts)
        if client.facts:
            yield from _facts(client.facts)
        if client.status:
            yield from _status(client.status)


class _ControlFigures(Collector):
    """What the loop decided."""

    def __init__(self, control: VariantControl) -> None:
        self._control = control

    def collect(self) -> Iterable[Metric]:
        controller = self._control.controller
        steers = self._control.steering is not None and controller.is_on and not controller.is_held
        yield _gauge("policy_steering", "Whether a policy decides now: it is on, and no hand holds it.", steers)
        decisions = CounterMetricFamily("lamella_decisions", "Changes of variant, by who decided.", labels=["by"])
        for by in ("policy", "hand", "memory"):
            decisions.add_metric([by], controller.n_changes[by])
        yield decisions


def _facts(facts: Hello) -> Iterable[Metric]:
    yield _gauge("kv_cells", "Tokens that the KV cache holds.", facts.n_cells)
    yield _gauge("sequences", "Requests that run at once.", facts.n_sequences)


_GAUGES: tuple[tuple[str, str, Callable[[Status], float]], ...] = (
    ("requests_running", "Requests that write.", lambda status: status.n_running),
    ("requests_waiting", "Requests in the queue.", lambda status: status.n_waiting),
    (
        "requests_parked",
        "Requests pushed aside by higher priorities, or for want of KV cells.",
        lambda status: status.n_parked,
    ),
    ("kv_cells_used", "Tokens in the KV cache, kept prefixes included.", lambda status: status.cells_used),
    ("mapped_bytes", "Bytes of shards mapped.", lambda status: status.mapped_bytes),
    ("private_bytes", "Private memory of the engine.", lambda status: status.private_bytes),
    ("step_seconds_now", "Age of the step in progress and what goes with it.", lambda status: status.step_seconds_now),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Status], float]], ...] = (
    ("steps", "Steps of the model.", lambda status: status.n_steps),
    ("switches", "Switches of the variant.", lambda status: status.n_switches),
    ("switch_stall_seconds", "Time that no step could run because of a switch.", lambda status: status.switch_seconds),
    ("flip_seconds", "Time spent on alternating between variants.", lambda status: status.flip_seconds),
)


def _status(status: Status) -> Iterable[Metric]:
    for name, help_text, value in _GAUGES:
        yield _gauge(name, help_text, value(status))
    for name, help_text, value in _COUNTERS:
        yield _counter(name, help_text, value(status))
    running = GaugeMetricFamily("lamella_variant_running", "1 for the variant that runs.", labels=["variant"])
    running.add_metric([status.variant], 1)
    yield running


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"lamella_{name}", help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"lamella_{name}", help_text, value=value)


def _histogram(name: str, help_text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(f"lamella_{name}_seconds", help_text, ["priority"], buckets=buckets, registry=registry)
