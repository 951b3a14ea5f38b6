"""Claim: a policy keeps a promise that the best variant breaks, at far less divergence than the smallest one has.

    .venv/bin/python -m benchmarks.qos [--model smollm2] [--minutes 10] [--ways highest,lowest,predictive]

One bursty trace, one promise (p95 time per output token, stated by what the highest variant did: ``qos_load``), six
ways to serve it, one after the other on this machine:
the highest variant alone, the lowest alone, the policies ``threshold`` and ``predictive`` of ``lamella serve``, the
``oracle`` that knows the trace, and ``restart``: llama-server restarted for changes that ``predictive`` made, behind
a proxy that lets streams end first (one that the next has overtaken is left out).  Reported: requests that met the
promise, mean KL over tokens, failures; and what the simulator said before, from the profile alone.

The profile is of minutes or hours before, and a plan that just keeps a promise there breaks it where the machine is a
little slower now.  So ``oracle`` is planned for the slow minutes that the two static ways showed (``qos_pace``), and
the simulator is asked a second time, at the pace that the machine had from minute to minute during each way
(``simulated_at_pace``).

Store, profile and each way that was measured are kept in ``--work``: the same command again measures what is missing
(without ``--profile-again``, which begins anew; so does another commit).  ``--measured-at COMMIT`` measures nothing: it
says anew what follows from ways that were kept there.  Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks import clients, servers
from benchmarks.common import DATA, commit, record, table
from benchmarks.proxy import RestartingProxy
from benchmarks.qos_kept import KeptWays, Way
from benchmarks.qos_load import Contest, find_contest, restated
from benchmarks.qos_virtual import STATIC, Bench, planned_oracle, share_off, simulated
from benchmarks.replayed import Replayed, Timeline, on_clients_clock, replay_live
from benchmarks.stores import stock_store, work_folder
from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.evaluating.evaluation import Exams
from lamella.llama.model import Model
from lamella.qos.policies.schedule import Schedule
from lamella.qos.policies.setting import Setting
from lamella.qos.profiles.documents import Profile
from lamella.qos.profiling.points import Points
from lamella.qos.simulator.outcome import Change, Served, attainment, mean_kl, met
from lamella.qos.watching import p95
from lamella.report.replays import plot_replay
from lamella.store.store import Store

MIXES = ("Q8_0", "planned-6.7", "planned-6.0", "Q4_0")
WAYS = ("highest", "lowest", "threshold", "predictive", "oracle", "restart")
N_CTX, N_SEQUENCES = 1024, 8
KL_TEXT, KL_WINDOWS = DATA / "wikitext2" / "wiki.test.raw", 4
N_WARM_UP, WARM_UP_TOKENS = 3, 16


def main() -> None:
    args = _arguments()
    with work_folder(args.work) as folder:
        store = stock_store(args.model, args.mixes.split(","), folder / f"store-{args.model}")
        path = folder / f"profile-{args.model}.json"
        profile = profiled(store, path, folder, again=args.profile_again)
        contest = find_contest(profile, args.minutes, args.seed)
        setting = Setting.of(profile, contest.objectives)
        prompts = token_prompts(store, contest, args.seed)
        bench = Bench(store, folder, path, setting, contest, prompts)
        ways: dict[str, Way] = {}
        for name in args.ways.split(","):
            kept = KeptWays(folder / f"ways-{args.model}", _kept_terms(name, bench, args.measured_at))
            ways[name] = kept.read(name) or asyncio.run(_measured_now(name, bench, ways, args.measured_at))
            kept.write(name, ways[name])
            if name == "highest":
                bench = promised_by(bench, ways[name])
            print(f"{name}: {_line(bench, ways[name].served)}", flush=True)
    report(args.model, bench, ways, args.plot, args.measured_at)


async def _measured_now(name: str, bench: Bench, before: Mapping[str, Way], measured_at: str) -> Way:
    """A way that is not kept; not under another commit's name."""
    if measured_at != commit():
        raise SystemExit(f"'{name}' of {measured_at} is not kept in {bench.folder}; here is {commit()}")
    return await measure(name, bench, before)


def promised_by(bench: Bench, highest: Way) -> Bench:
    """The promise as the highest variant broke it live; it is what all others are measured under."""
    contest = restated(bench.contest, highest.served)
    return replace(bench, contest=contest, setting=replace(bench.setting, objectives=contest.objectives))


def _kept_terms(way: str, bench: Bench, measured_at: str) -> dict[str, Any]:
    """What measured ways must agree in; a variant alone is promised nothing."""
    contest = bench.contest
    content = hashlib.sha256(bench.profile_file.read_bytes()).hexdigest()
    trace = {"trace": contest.trace.name, "seconds": contest.trace.seconds}
    promise = {} if way in STATIC else {"promised_ms": contest.token_ms}
    return {**trace, **promise, "profile": content, "commit": measured_at}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="smollm2 or qwen-0.5b")
    parser.add_argument("--minutes", type=float, default=10, help="of the trace; each way takes so long")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--mixes", default=",".join(MIXES), help="variants: types of llama-quantize, or planned-BITS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile-again", action="store_true", help="measure the profile anew")
    parser.add_argument(
        "--measured-at", metavar="COMMIT", default=commit(), help="take the ways kept from there, measure none"
    )
    parser.add_argument("--plot", type=Path, help="draw predictive, or the last way, to this file")
    parser.add_argument("--work", type=Path, help="folder in which store and profile are kept for the next time")
    args = parser.parse_args()
    if args.profile_again and args.measured_at != commit():
        parser.error("--profile-again measures, and --measured-at takes what was measured before")
    return args


# --- before ----------------------------------------------------------------------------------------------------------


def profiled(store: Store, path: Path, cache_folder: Path, *, again: bool) -> Profile:
    """The variants measured here; what the file has stays."""
    settings = EngineSettings(store=str(store.path), n_ctx=N_CTX, n_sequences=N_SEQUENCES)
    known = {v.name: v.quality.is_measured for v in api.read_profile(path).variants} if path.exists() else {}
    is_known = not again and all(known.get(v.name) for v in store.variants())
    exams = None if is_known else Exams(text=KL_TEXT, n_windows=KL_WINDOWS)
    found, _ = api.profile(
        settings, out=path, cache_folder=cache_folder, exams=exams, points=Points(repeats=2), again=again,
        on_point=lambda variant, done, total, what: print(f"profile of {variant}, {done + 1}/{total}: {what}"),
    )  # fmt: skip
    return found


def token_prompts(store: Store, contest: Contest, seed: int) -> list[list[int]]:
    """Pieces of a text as long as the trace says, the same for every way."""
    with Model.load(store.shard_paths(store.variant(contest.lowest))) as model:
        tokens = model.vocabulary.tokenize(KL_TEXT.read_text()[:2_000_000])
    draws = random.Random(seed)
    starts = [(draws.randrange(len(tokens) - a.n_prompt), a.n_prompt) for a in contest.trace.arrivals]
    return [tokens[start : start + n] for start, n in starts]


# --- the ways --------------------------------------------------------------------------------------------------------


async def measure(name: str, bench: Bench, before: Mapping[str, Way]) -> Way:
    """One way from the start of its server to its last answer."""
    if name == "restart":
        return await restarted(bench, before["predictive"].timeline)
    if name in ("threshold", "predictive"):
        promise = ("--token-p95", bench.contest.token_ms, "--policy", name, "--profile", bench.profile_file)
        return await served_by(bench, bench.start, *promise)
    if name == "oracle":
        schedule = planned_oracle(bench, before)
        return await served_by(bench, schedule.variants[0], schedule=schedule)
    return await served_by(bench, getattr(bench.contest, name))


async def served_by(bench: Bench, variant: str, *options: object, schedule: Schedule | None = None) -> Way:
    """``lamella serve``, with a policy of its own, or switched by a schedule."""
    sizes = {"n_ctx": N_CTX, "n_sequences": N_SEQUENCES}
    with servers.ours(bench.store.path, variant, *options, log=bench.folder / "ours.log", **sizes) as port:
        async with clients.admin(port) as client:
            await warm_up(port)
            follow = asyncio.create_task(_follow(client, schedule)) if schedule else None
            found = await replay_live(port, bench.contest.trace, bench.prompts)
            if follow:
                follow.cancel()
            answer = await client.get("/admin/decisions")
            decisions = [d for d in answer.json()["decisions"] if not d["failure"]]
    changes = [(on_clients_clock(d["at"]), d["to"]) for d in decisions]
    return _way(found, Timeline(variant, changes), [d["reason"] for d in decisions])


async def _follow(client: httpx.AsyncClient, schedule: Schedule) -> None:
    """Switch as planned."""
    began = time.perf_counter() + 1.0  # as replay_live
    running = schedule.variants[0]
    for at, variant in zip(schedule.starts, schedule.variants, strict=True):
        if variant != running:
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            (await client.post("/admin/switch", json={"variant": variant})).raise_for_status()
            running = variant


async def restarted(bench: Bench, wishes: Timeline) -> Way:
    """llama-server, restarted for every change of another way."""
    async with RestartingProxy(N_CTX, N_SEQUENCES, bench.folder / "theirs.log", drains=True) as proxy:
        await proxy.change(bench.store.first_link(wishes.start))
        await warm_up(proxy.port)
        done: list[tuple[float, str]] = []

        async def follow() -> None:
            began = time.perf_counter() + 1.0
            for i, (at, variant) in enumerate(wishes.changes):
                await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
                overtaken = i + 1 < len(wishes.changes) and began + wishes.changes[i + 1][0] <= time.perf_counter()
                if not overtaken:
                    await proxy.change(bench.store.first_link(variant))
                    done.append((time.perf_counter(), variant))

        following = asyncio.create_task(follow())
        found = await replay_live(proxy.port, bench.contest.trace, bench.prompts)
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    return _way(found, Timeline(wishes.start, done))


async def warm_up(port: int) -> None:
    """The first steps of a process are slower than others; one request at a time, so that no policy sees a burst."""
    for _ in range(N_WARM_UP):
        await clients.write_all(port, ["Once upon a time"], WARM_UP_TOKENS)


def _way(found: Replayed, timeline: Timeline, reasons: Sequence[str] = ()) -> Way:
    shifted = Timeline(timeline.start, [(at - found.began, variant) for at, variant in timeline.changes])
    return Way(found.served(timeline), shifted, tuple(reasons))


# --- what came of it -------------------------------------------------------------------------------------------------


def report(model: str, bench: Bench, ways: dict[str, Way], plot: Path | None, measured_at: str) -> None:
    contest = bench.contest
    found = {name: {**_figures(bench, way), **simulated(name, bench, ways)} for name, way in ways.items()}
    rows: list[list[object]] = [
        ["way", "requests", "met", "p95 ms/token", "p95 first ms", "KL", "failed", "changes", "simulated met", "KL",
         "pace", "at that pace met", "KL"]
    ]  # fmt: skip
    for name, f in found.items():
        said = [_said(f.get(key)) for key in ("simulated", "simulated_at_pace")]
        rows.append([name, f["requests"], f"{f['attainment']:.1%}", f["tpot_p95_ms"], f["ttft_p95_ms"], f["kl"],
                     f["failed"], f["changes"], *said[0], f.get("pace", "-"), *said[1]])  # fmt: skip
    table(rows)
    print(f"promise: {contest.token_ms:.0f} ms a token for 95 % of the requests; {contest.trace.name}")
    if plot:
        draw(bench, ways.get("predictive") or list(ways.values())[-1], plot)
    claims = {**_claims(found), **_simulator_off(found)}
    record(f"qos-{model}", {"model": model, "measured_at": measured_at, **claims, **_terms(bench), "ways": found})


def _said(found: dict[str, Any] | None) -> tuple[str, object]:
    return (f"{found['attainment']:.1%}", found["kl"]) if found else ("-", "-")


def _claims(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the claim is made of; None where a way was left out."""

    def of(way: str, key: str) -> Any:
        return found[way][key] if way in found else None

    def ratio(above: float | None, below: float | None) -> float | None:
        return round(above / below, 4) if above is not None and below else None

    missed = [None if (a := of(way, "attainment")) is None else 1 - a for way in ("predictive", "highest")]
    fewer = ratio(missed[0], missed[1])
    ours = [name for name in found if name != "restart"]
    return {
        "attainment": of("predictive", "attainment"),
        "static_high_attainment": of("highest", "attainment"),
        "kl_vs_static_low": ratio(of("predictive", "kl"), of("lowest", "kl")),
        "kl_vs_oracle": ratio(of("predictive", "kl"), of("oracle", "kl")),
        "failed": sum(found[name]["failed"] for name in ours),
        "fewer_violations": None if fewer is None else round(1 - fewer, 4),
        "restart_attainment": of("restart", "attainment"),
    }


def _simulator_off(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The largest differences of simulated from live at each way's pace: in attainment, and as a share of KL."""
    said = [(f, f["simulated_at_pace"]) for f in found.values() if "simulated_at_pace" in f]
    return {
        "attainment_off": max((round(abs(f["attainment"] - s["attainment"]), 4) for f, s in said), default=None),
        "kl_off": max((share_off(s["kl"], f["kl"]) for f, s in said), default=None),
    }


def _terms(bench: Bench) -> dict[str, Any]:
    contest = bench.contest
    return {
        "trace": contest.trace.name,
        "trace_seconds": round(contest.trace.seconds, 1),
        "promised_token_ms": round(contest.token_ms, 2),
        "highest": contest.highest,
        "lowest": contest.lowest,
        "rungs": {rung.name: _rung_fields(rung) for rung in bench.setting.rungs},
    }


def _rung_fields(rung: Any) -> dict[str, Any]:
    n = N_SEQUENCES
    return {
        "kl": rung.kl,
        "token_ms": round(1000 * rung.speed.writing(1, 100), 2),
        f"token_ms_of_{n}": round(1000 * rung.speed.writing(n, 100), 2),
        "others_share": rung.profile.others_share,
    }


def _figures(bench: Bench, way: Way) -> dict[str, Any]:
    good = [one for one in way.served if not one.failure]
    kl = mean_kl(way.served, {rung.name: rung.kl for rung in bench.setting.rungs})
    return {
        "requests": len(way.served),
        "attainment": round(attainment(way.served, bench.contest.objectives), 4),
        "kl": None if kl is None else round(kl, 5),
        "tpot_p95_ms": _ms(p95(one.tpot_seconds for one in good)),
        "ttft_p95_ms": _ms(p95(one.ttft_seconds for one in good)),
        "failed": len(way.served) - len(good),
        "failures": sorted({one.failure for one in way.served if one.failure}),
        "changes": len(way.timeline.changes),
        "changed_to": [[round(at, 2), variant] for at, variant in way.timeline.changes],
        "reasons": list(way.reasons),
    }


def draw(bench: Bench, way: Way, path: Path) -> None:
    """Load, latency against the promise, and which variant ran."""
    changes = [Change(at, "", variant, "") for at, variant in way.timeline.changes]
    rungs = [rung.name for rung in bench.setting.rungs]
    plot_replay(bench.contest.trace, way.served, bench.contest.objectives, rungs, way.timeline.start, changes, path)


def _line(bench: Bench, served: tuple[Served, ...]) -> str:
    n_met = sum(met(one, bench.contest.objectives) for one in served)
    return f"{n_met} of {len(served)} met {bench.contest.token_ms:.0f} ms a token"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


if __name__ == "__main__":
    main()
