"""What records of the server say, as lines; ``benchmarks/readers.py`` has the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.lines import Document, Line, Reader, compared, number, promised


def _serve(document: Document) -> Iterable[Line]:
    loads = document["loads"]
    for key, what, unit, more in _SERVE_LOADS:
        if key not in loads:  # records before 2026-11-22 have no "seven"
            continue
        yield compared(
            what,
            loads[key]["ours"]["median"],
            loads[key]["rival"]["median"],
            unit,
            rival="llama-server",
            more_is_better=more,
        )


_SERVE_LOADS = (
    ("single", "one stream", "tokens/s", True),
    ("concurrent", "eight streams together", "tokens/s", True),
    ("seven", "seven streams together", "tokens/s", True),
    ("ttft", "time to the first token, 4 requests/s", "s", False),
    ("prefix", "the same with 1,000 shared tokens", "s", False),
)


def _serve_switch(document: Document) -> Iterable[Line]:
    ways = document["ways"]
    n_failed, n_requests = document["failed"], ways["ours"]["requests"]
    yield promised(
        f"requests failed in {document['switches']} switches", f"{n_failed} of {n_requests}", n_failed == 0, "none"
    )
    for way, name in (("cut", "llama-server restarted at once"), ("drain", "llama-server drained, then restarted")):
        if way in ways:
            yield compared(
                "longest time between two tokens at a switch (median)",
                ways["ours"]["switch_gap_ms"]["p50"],
                ways[way]["switch_gap_ms"]["p50"],
                "ms",
                rival=name,
            )
    longest, allowed = document["longest_gap_ms"], document["allowed_gap_ms"]
    yield promised(
        "longest time between two tokens", f"{number(longest)} ms", longest <= allowed, f"at most {number(allowed)} ms"
    )


def _serve_classes(document: Document) -> Iterable[Line]:
    answers = document["layouts"]["auto"]["answers"]
    control = document["layouts"]["auto"]["control_again"]
    yield compared(
        f"of {answers['answers']} answers, those that differ from a pinned server's",
        answers["differing"],
        control["differing"],
        "",
        rival="the pinned server from itself",
    )
    alike = document["layouts"].get("reproducible", {}).get("answers")
    if alike:
        differing = alike["differing"]
        yield promised("the same with --reproducible", f"{differing} of {alike['answers']}", differing == 0, "none")
    auto = document["layouts"]["auto"]
    yield compared(
        "two classes on one engine",
        auto["together_tokens_per_second"]["median"],
        auto["apart_tokens_per_second"]["median"],
        "tokens/s",
        rival="one after the other",
        more_is_better=True,
    )
    memory = auto["memory_bytes"]
    single = sum(memory[mix] for mix in document["mixes"])
    yield compared("memory of both variants", memory["both"] / 2**20, single / 2**20, "MiB", rival="two engines")


def _serve_kills(document: Document) -> Iterable[Line]:
    n_answers = document["answers"]["answers"]
    differing = document["differing"] + len(document["incomplete"])
    yield promised(
        f"answers cut or changed by {document['kills']} kills", f"{differing} of {n_answers}", differing == 0, "none"
    )
    yield Line("first token after a kill", f"{number(document['first_token_seconds']['median'])} s")
    yield Line("all streams again", f"{number(document['all_streams_seconds']['median'])} s")


def _serve_soak(document: Document) -> Iterable[Line]:
    for name, found in document["memory"].items():
        growth = found["growth_per_hour"] / 2**20
        yield promised(
            f"growth of {name.replace('_', ' ')}",
            f"{growth:.1f} ± {found['plus_minus'] / 2**20:.1f} MiB an hour",
            found["is_flat"],
            "none",
        )
    bad, good = (sum(document["outcomes"][kind].values()) for kind in ("bad", "good"))
    yield promised("requests that ended otherwise than they must", f"{bad} of {bad + good}", bad == 0, "none")


def _first_start(document: Document) -> Iterable[Line]:
    yield Line("first start: measured, planned, built", f"{number(document['first_seconds'])} s to the first token")
    yield promised(
        "later starts", f"{number(document['later']['max'])} s to the first token at most", document["is_kept"], "3 s"
    )


def _qos(document: Document) -> Iterable[Line]:
    for way, found in document["ways"].items():
        met = found["attainment"]
        yield Line(f"requests that kept the promise: {way}", f"{met:.1%}", f"KL {number(found['kl'])} nats")


def _squeeze(document: Document) -> Iterable[Line]:
    words = {
        "steered": "our server, which steps down",
        "static": "our server at its highest variant",
        "private": "llama-server with weights in memory of its own",
    }
    for way, found in document["ways"].items():
        lost, n_requests = found["lost"], found["answers"] + found["lost"]
        told = f"{lost} of {n_requests} requests lost, killed in {found['runs_with_a_kill']} of {found['runs']} runs"
        slowest = f"slowest answer {number(found['longest_seconds'])} s"
        if way == "steered":
            yield promised(words[way], f"{told}, {slowest}", not lost and not found["killed"], "none")
        else:
            yield Line(words[way], told, slowest)


def _simulated(document: Document) -> Iterable[Line]:
    for way, found in document["ways"].items():
        live, said = found["live"], found["simulated"]
        off, kl_off = found["attainment_off"], found["kl_off"]
        yield promised(
            f"requests that kept the promise, live and simulated: {way}",
            f"{live['attainment']:.1%} and {said['attainment']:.1%}",
            off <= document["attainment_allowed"],
            f"{100 * document['attainment_allowed']:.0f} points apart",
        )
        yield promised(
            f"mean KL, live and simulated: {way}",
            f"{number(live['kl'])} and {number(said['kl'])} nats",
            kl_off <= document["kl_allowed"],
            f"{document['kl_allowed']:.0%} apart",
        )


SERVING_READERS: Mapping[str, Reader] = {
    "serve": _serve,
    "serve_switch": _serve_switch,
    "serve_classes": _serve_classes,
    "serve_kills": _serve_kills,
    "serve_soak": _serve_soak,
    "first_start": _first_start,
    "qos": _qos,
    "squeeze": _squeeze,
    "simulated": _simulated,
}
