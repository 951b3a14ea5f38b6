"""What records say, as lines.

Pure: a record's document in, lines out.  Each kind of record has one function here; a record of a kind that has none
is shown by its plain numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.lines import Document, Line, Reader, compared, number, promised
from benchmarks.serving_readers import SERVING_READERS


def lines_of(name: str, document: Document) -> list[Line]:
    """The lines of the record ``benchmarks/results/NAME.json``."""
    return list(_READERS.get(name.partition("-")[0], _plain)(document))


def _plain(document: Document) -> Iterable[Line]:
    for key, value in document.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "load_average":
            yield Line(key.replace("_", " "), number(value))


def _switch(document: Document) -> Iterable[Line]:
    auto = document["layouts"]["auto"]
    yield compared(
        "switch in the middle of a generation",
        auto["switch_ms"]["median"],
        document["reload"]["median"],
        "ms",
        rival="close, load, read the text again",
    )
    for layout, found in document["layouts"].items():
        yield compared(
            f"the token at the switch, layout {layout}",
            found["token_ms"]["median"],
            found["neighbours_ms"]["median"],
            "ms",
            rival="its neighbours",
        )


def _quality(document: Document) -> Iterable[Line]:
    for row in document["rows"]:
        for text, divergences in row["kl"].items():
            for name, found in divergences.items():
                if name != "stock":
                    yield compared(
                        f"KL divergence on {text} at the bytes of {row['mix']}, {_POLICIES.get(name, name)}",
                        found[0],
                        divergences["stock"][0],
                        "nats",
                        rival="llama-quantize's mix",
                    )


_POLICIES = {"ours": "knapsack", "lsaq": "LSAQ's policy", "lwq-cosine": "LWQ's policy"}


def _store(document: Document) -> Iterable[Line]:
    steps = document["steps"]
    yield compared(
        f"disk of {len(steps)} steps planned together", document["joint_ratio"], 1.0, "x", rival="a file for each"
    )
    for step in steps:
        yield compared(
            f"KL divergence of the step at {step['bits_per_weight']:.2f} bits",
            step["kl"][0],
            step["kl_alone"][0],
            "nats",
            rival="the same size planned alone",
        )
    costs = document["costs"]
    for key, what, unit, scale in _STORE_COSTS if costs else ():
        yield compared(
            what, costs["ladder"][key] * scale, costs["files"][key] * scale, unit, rival="one file for each step"
        )


_STORE_COSTS = (
    ("build_s", "time to build all steps", "s", 1.0),
    ("disk_bytes", "disk", "MiB", 2**-20),
    ("cached_bytes", "page cache of all steps", "MiB", 2**-20),
)


def _knapsack(document: Document) -> Iterable[Line]:
    for name, found in document["seconds"].items():
        for what, seconds in found.items():
            yield Line(f"{what}, {name}", f"{number(seconds['median'])} s")
    for gap in document["gaps"]:
        yield compared(
            f"predicted loss of the plan at {gap['bits_per_weight']} bits",
            gap["loss"],
            gap["proven_loss"],
            "nats",
            rival="integer program",
        )


def _eval_cost(document: Document) -> Iterable[Line]:
    for kind, found in document["exams"].items():
        yield compared(
            f"three variants examined on {kind}",
            found["exams_s"]["median"],
            found["forward_s"]["median"],
            "s",
            rival="their forward passes alone",
        )


def _kept_cache(document: Document) -> Iterable[Line]:
    for switch, found in document["switches"].items():
        yield compared(
            f"KL divergence after {switch.replace('>', ' to ')}, cache kept",
            found["kept"],
            found["recomputed"],
            "nats",
            rival="cache computed anew",
        )


def _quantize(document: Document) -> Iterable[Line]:
    for count in ("one", "four"):
        found = document[count]
        yield compared(
            f"build {count} {document['mix']} variant{'s' * (count == 'four')}",
            found["ours_s"]["median"],
            found["rival_s"]["median"],
            "s",
            rival="llama-quantize",
        )


def _run_speed(document: Document) -> Iterable[Line]:
    for mix, phases in document["mixes"].items():
        for phase, found in phases.items():
            yield compared(
                f"{phase}, {mix}",
                found["ours"]["median"],
                found["rival"]["median"],
                "tokens/s",
                rival="llama-bench",
                more_is_better=True,
            )


def _verify(document: Document) -> Iterable[Line]:
    yield compared(
        f"every shard's SHA-256, {document['bytes'] / 1e9:.1f} GB",
        document["verify_s"]["median"],
        document["sha256sum_s"]["median"],
        "s",
        rival="sha256sum, as many processes",
    )


def _tunnel(document: Document) -> Iterable[Line]:
    yield compared(
        "a token through the tunnel",
        document["tunnel_ms"]["median"],
        document["plain_ms"]["median"],
        "ms",
        rival="plain RPC on loopback",
    )


MOST_ABOVE_EXACT = 0.05
"""What is asked of the heuristic for several models."""


def _placement(document: Document) -> Iterable[Line]:
    small = document["small"]
    for n_nodes, part in ((8, document["eight"]), (16, document["sixteen"])):
        n = len(part["seconds"]["values"])
        yield Line(f"time to place, {n} problems of {n_nodes} nodes (median)", f"{number(part['seconds']['median'])} s")
        yield Line("the slowest of them", f"{number(part['seconds']['max'])} s")
        yield promised("proven within 1 %", f"{part['reached']} of {n}", part["reached"] == n, "all")
    above = [row["above_exact"] for row in document["several"] if row["above_exact"] is not None]
    n_near = sum(share <= MOST_ABOVE_EXACT for share in above)
    what = f"three models on four nodes within {MOST_ABOVE_EXACT:.0%} of the exact program"
    yield promised(what, f"{n_near} of {len(above)}", n_near == len(above), "all")
    yield Line("the farthest above it; the median", f"{max(above):.1%}; {statistics.median(above):.1%}")
    for row in document["large"]:
        what = f"{row['models']} models on {row['nodes']} nodes: above a bound on the best"
        yield Line(what, f"{row['above_bound']:.0%}", f"{number(row['seconds'])} s")
    n_wrong = document["mismatches"]
    yield promised(
        f"answers unlike trying everything, {small['instances']} small problems", str(n_wrong), n_wrong == 0, "none"
    )


def _lsaq_tables(document: Document) -> Iterable[Line]:
    for one in document["claims"]:
        holds = one["verdict"] == "holds"
        yield promised(one["claim"], one["found"], holds, f"{document['model']}")


def _cluster(document: Document) -> Iterable[Line]:
    measured = {plan["planner"]: plan["measured_ms"]["median"] for plan in document["plans"]}
    for planner, theirs in measured.items():
        if planner != "joint" and "joint" in measured:
            yield compared("a token, places and bits together", measured["joint"], theirs, "ms", rival=planner)
    for plan in document["plans"]:
        found = number(measured[plan["planner"]])
        yield Line(f"predicted for {plan['planner']}", f"{number(plan['predicted_ms'])} ms", f"measured: {found} ms")


def _node_kills(document: Document) -> Iterable[Line]:
    n_cut, n_requests = len(document["incomplete"]), document["requests"]
    what = f"requests left incomplete, {document['kills']} times"
    yield promised(what, f"{n_cut} of {n_requests}", n_cut == 0, "none")
    recovery = document["recovery_seconds"]
    yield Line("until every stream goes on", f"{number(recovery['median'])} s (at most {number(recovery['max'])} s)")


def _tuned(document: Document) -> Iterable[Line]:
    found = {(row["text"], row["windows"], row["rounding"]): row["kl"] for row in document["rows"]}
    for (text, windows, rounding), divergence in found.items():
        if rounding != "imatrix":
            what = f"KL divergence on {text}, {windows} windows: {document['rounding'][rounding]}"
            plain = found[text, windows, "imatrix"]
            yield compared(what, divergence, plain, "nats", rival="ggml under an importance matrix")


def _dilemma(document: Document) -> Iterable[Line]:
    for row in document.get("rows", ()):
        words = ", ".join(f"{key} {number(v) if isinstance(v, float) else v}" for key, v in row.items() if _short(v))
        yield Line("plan", words)


def _short(value: Any) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) < 30


_READERS: Mapping[str, Reader] = {
    "switch": _switch,
    "quality": _quality,
    "store": _store,
    "knapsack": _knapsack,
    "eval_cost": _eval_cost,
    "kept_cache": _kept_cache,
    "quantize": _quantize,
    "run_speed": _run_speed,
    "verify": _verify,
    "tunnel": _tunnel,
    "placement": _placement,
    "lsaq_tables": _lsaq_tables,
    "cluster": _cluster,
    "node_kills": _node_kills,
    "tuned": _tuned,
    "dilemma": _dilemma,
    **SERVING_READERS,
}
