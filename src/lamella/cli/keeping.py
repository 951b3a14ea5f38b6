"""``lamella store quota|trim|pin|unpin|restore|repair``: how much a store keeps, and how it is mended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from lamella import api
from lamella.cli.options import StoreArgument
from lamella.cli.output import JsonFlag, note, print_json, progress, say
from lamella.cli.store import VariantArgument, fields_of
from lamella.config import Config
from lamella.core.artifacts import Variant
from lamella.core.errors import QuotaNotReached, ShardDamaged
from lamella.core.units import format_bytes, parse_bytes
from lamella.store.fetching import ShardSource
from lamella.store.keeping import TrimReport
from lamella.store.store import Store

NO_QUOTA = "none"

FromOption = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="STORE", help="Another store, folder or URL, to ask first; may be repeated."),
]


def add_to(app: typer.Typer) -> None:
    """Make these commands of ``lamella store``."""
    for command in (quota, trim, pin, unpin, restore, repair):
        app.command()(command)


def quota(
    store: StoreArgument,
    size: Annotated[
        str | None, typer.Argument(metavar="[SIZE]", help="Such as 2GiB, or none. Default: show it.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show or set what the store may take on disk; builds keep it at their end, and so does trim."""
    opened = Store.open(store)
    if size is not None:
        opened.state.set_quota(None if size == NO_QUOTA else parse_bytes(size))
    allowed, stored = opened.state.quota_bytes(), opened.state.stored_bytes()
    if json:
        print_json({"quota_bytes": allowed, "stored_bytes": stored, "pinned": sorted(opened.state.pinned())})
        return
    limit = "no quota" if allowed is None else f"quota {format_bytes(allowed)}"
    say(f"{limit}; the store takes {format_bytes(stored)}")
    if allowed is not None and stored > allowed:
        say(f"{format_bytes(stored - allowed)} too much; drop what can be got back with: lamella store trim {store}")


def trim(store: StoreArgument, json: JsonFlag = False) -> None:
    """Drop shards until the quota holds: what no variant needs, then what can be got back; exit code 6 if it cannot.

    What goes first has not been used for long, is large, and is quickly got back. Loading a variant gets its
    dropped shards back.
    """
    report = api.trim(store)
    if json:
        print_json(trim_fields(report))
        raise typer.Exit(QuotaNotReached.exit_code if report.short_bytes else 0)
    say(describe_trim(report))
    report.check_reached()


def pin(store: StoreArgument, variant: VariantArgument, json: JsonFlag = False) -> None:
    """Never drop shards of this variant."""
    opened = Store.open(store)
    found = opened.variant(variant)
    opened.state.pin(variant)
    n_dropped = _n_dropped(opened, found)
    if json:
        print_json({"variant": variant, "pinned": True, "dropped_shards": n_dropped})
        return
    say(f"{variant} is pinned: none of its shards is dropped")
    if n_dropped:
        say(f"{n_dropped} of its shards are dropped; get them back with: lamella store restore {store} {variant}")


def unpin(store: StoreArgument, variant: VariantArgument, json: JsonFlag = False) -> None:
    """Let shards of this variant be dropped again."""
    opened = Store.open(store)
    opened.check_variant_exists(variant)
    opened.state.unpin(variant)
    if json:
        print_json({"variant": variant, "pinned": False})
    else:
        say(f"{variant} is not pinned")


def restore(
    store: StoreArgument,
    variant: VariantArgument,
    source: FromOption = None,
    json: JsonFlag = False,
) -> None:
    """Get back a variant's shards that were dropped or lost, so that stock llama.cpp can read it too."""
    with progress("restoring", quiet=json), _sources(source) as elsewhere:
        got = api.restore(store, variant, elsewhere=elsewhere, n_threads=_n_threads())
    if json:
        print_json({"variant": variant, "restored": dict(got)})
    else:
        for label, origin in got.items():
            say(f"{label}: {origin}")
        say(f"{variant} is complete" + (f"; {len(got)} shards were got back" if got else ""))


def repair(
    store: StoreArgument,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model file, if it does not stand where it stood.")
    ] = None,
    source: FromOption = None,
    json: JsonFlag = False,
) -> None:
    """Hash every shard and get back what is damaged or missing; exit code 6 if something remains so.

    A shard is taken from another store, made again from the model, or fetched from where it was pulled from; only the
    very same bytes are accepted.
    """
    with progress("verifying", quiet=json) as update, _sources(source) as elsewhere:
        total, done = Store.open(store).state.stored_bytes(), 0

        def hashed(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            update(done, total, format_bytes(done))

        report = api.repair(store, model=model, elsewhere=elsewhere, n_threads=_n_threads(), on_progress=hashed)
    if json:
        print_json({"ok": report.ok, **fields_of(report)})
    else:
        for r in report.repaired:
            say(f"repaired: shard {r.id} ({r.label} of {', '.join(r.variants)}), {r.reason}: {r.origin}")
        for d in report.failed:
            say(f"damaged still: shard {d.id} ({d.label or 'of no variant'}): {d.reason}")
        for link in report.mended_links:
            say(f"link mended: {link}")
        for reason in report.unreadable:
            say(f"unreadable: {reason}")
        say(f"{report.n_shards} shards, {len(report.repaired)} repaired: {'all good' if report.ok else 'NOT good'}")
    if not report.ok:
        raise typer.Exit(ShardDamaged.exit_code)


def describe_trim(report: TrimReport) -> str:
    """What a trim did, in one line."""
    within = f"{format_bytes(report.stored_bytes)} of {format_bytes(report.quota_bytes)}"
    if not report.dropped and not report.garbage_bytes:
        return f"nothing dropped: the store takes {within}"
    what = [f"{len(report.dropped)} shards ({format_bytes(report.dropped_bytes)}) that can be got back"]
    what += [f"{format_bytes(report.garbage_bytes)} of no variant"] if report.garbage_bytes else []
    return f"dropped {' and '.join(what)}; the store takes {within}"


def note_trim(report: TrimReport | None) -> None:
    """Tell on the error stream what a build dropped, and whether that was enough."""
    if report is None or not (report.dropped or report.garbage_bytes or report.short_bytes):
        return
    note(describe_trim(report))
    if report.short_bytes:
        why = report.obstacle or "lamella store trim says what may not go"
        note(f"{format_bytes(report.short_bytes)} above the quota: {why}")


def trim_fields(report: TrimReport) -> dict[str, object]:
    """For ``--json``."""
    return {**fields_of(report), "dropped_bytes": report.dropped_bytes, "short_bytes": report.short_bytes}


def _n_dropped(store: Store, variant: Variant) -> int:
    return sum(store.is_dropped(shard.id) for shard in variant.shards)


@contextlib.contextmanager
def _sources(wheres: Sequence[str] | None) -> Iterator[list[ShardSource]]:
    """Where ``--from`` says that shards can be had."""
    token = Config.from_environment(os.environ).token
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(api.shard_source(where, token)) for where in wheres or ()]


def _n_threads() -> int | None:
    return Config.from_environment(os.environ).n_threads or None
