"""``lamella store ...``: look into a store, check it, delete from it."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from lamella.cli.leftovers import note_leftovers
from lamella.cli.numbers import CommandGroup
from lamella.cli.options import StoreArgument
from lamella.cli.output import JsonFlag, bar, print_json, progress, say, stdout, table
from lamella.core.artifacts import LayerPlan, Variant, to_plain
from lamella.core.cores import MOST_THREADS
from lamella.core.errors import ShardDamaged
from lamella.core.precision import GGML_TYPES, MENU, nominal_bits
from lamella.core.units import format_bytes, parse_seconds
from lamella.planning.words import layer_words
from lamella.store.store import Store
from lamella.store.usage import VariantUsage
from lamella.store.verify import Sample, VerifyReport

app = CommandGroup(help="Look into a store, check it, delete from it.", no_args_is_help=True, rich_markup_mode=None)

VariantArgument = Annotated[str, typer.Argument(metavar="VARIANT", help="Name of a variant.")]


@app.command("ls")
def list_variants(store: StoreArgument, json: JsonFlag = False) -> None:
    """List the variants."""
    opened = Store.open(store)
    variants = opened.variants()
    if json:
        leftovers = fields_of(opened.leftovers())
        print_json({"model": opened.identity, "variants": [_summary(v) for v in variants], "leftovers": leftovers})
        return
    say(f"{opened.identity.name} ({opened.identity.architecture})")
    shown = table("variant", ">size", ">bits/weight", ">KL", ">its own", "shares most with", "policy", "layers")
    for v, used in zip(variants, opened.usage().variants, strict=True):
        plan = v.plan
        loss = "" if plan.predicted_loss is None else f"{plan.predicted_loss:.3g}"
        policy = plan.policy if plan.scheme == "block" else f"{plan.policy}, {plan.scheme}"
        bits, own = f"{plan.bits_per_weight:.2f}", format_bytes(used.own_bytes)
        shown.add_row(v.name, format_bytes(v.n_bytes), bits, loss, own, _shares_with(used), policy, layer_strip(v))
    stdout.print(shown)
    if any(v.plan.predicted_loss is not None for v in variants):
        say("KL: predicted divergence from the source, in nats a token; layers: bits of each, F for ten to sixteen")
    note_leftovers(opened)


@app.command()
def show(store: StoreArgument, variant: VariantArgument, json: JsonFlag = False) -> None:
    """Show one variant: its plan, its shards, and with which variants it shares them."""
    opened = Store.open(store)
    found = opened.variant(variant)
    users = {s.id: [v.name for v in opened.variants() if any(s.id == t.id for t in v.shards)] for s in found.shards}
    if json:
        print_json({**to_plain(found), "bytes": found.n_bytes, "shared_with": users})
        return
    plan = found.plan
    say(f"{found.name}: {format_bytes(found.n_bytes)}, {plan.bits_per_weight:.2f} bits per weight")
    say(f"policy {plan.policy}, scheme {plan.scheme}, " + ", ".join(f"{k} {v}" for k, v in plan.settings.items()))
    say(f"stock llama.cpp: llama-server -m {opened.first_link(found.name)}")
    precisions = {f"layer {x.layer}": layer_words(plan, x) for x in plan.layers}
    shown = table("part", "precision", ">size", "shard", "shared with")
    for shard in found.shards:
        others = [name for name in users[shard.id] if name != found.name]
        size = format_bytes(shard.n_bytes)
        shown.add_row(shard.label, precisions.get(shard.label, ""), size, shard.id[:12], ", ".join(others))
    stdout.print(shown)


@app.command()
def verify(
    store: StoreArgument,
    within: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop hashing after this long, such as 10s; in random order.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Look at the shards of this variant only.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Threads that hash. Default: one for each core.", min=1, max=MOST_THREADS)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --within: equal seeds give equal orders.")] = None,
    json: JsonFlag = False,
) -> None:
    """Hash every shard and compare with its name; exit code 6 if one, or a variant, is damaged.

    Whether all shards are there in full size is always seen. Shards that were dropped to keep the quota are no damage.
    """
    opened = Store.open(store)
    sample = Sample(parse_seconds(within) if within else None, variant, seed, jobs)
    total, done = opened.state.stored_bytes(), 0
    with progress("verifying", quiet=json) as update:

        def hashed(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            update(done, total, format_bytes(done))

        report = opened.verify(hashed, sample)
    if json:
        leftovers = fields_of(opened.leftovers())
        print_json({"ok": report.ok, "share": report.share, **fields_of(report), "leftovers": leftovers})
    else:
        _show_report(report)
        note_leftovers(opened)
    if not report.ok:
        raise typer.Exit(ShardDamaged.exit_code)


def _show_report(report: VerifyReport) -> None:
    for damaged in report.damaged:
        users = ", ".join(damaged.variants) or "no variant"
        say(f"damaged: shard {damaged.id} ({damaged.label}; used by {users}): {damaged.reason}")
    for link in report.broken_links:
        say(f"broken link: {link}; lamella store repair mends it")
    for reason in report.unreadable_variants:
        say(f"unreadable variant {reason}")
    for reason in report.unreadable_notes:
        say(f"unreadable: {reason}")
    if report.dropped:
        say(f"{len(report.dropped)} shards are dropped, can be rebuilt: loading their variants does so")
    if report.n_left:
        left = f"{report.n_left} shards ({format_bytes(report.left_bytes)})"
        say(f"{report.share:.0%} of all bytes hashed; {left} remain, there in full size but not hashed")
    verdict = "all good" if report.ok else "NOT good"
    say(f"{report.n_shards} shards, {format_bytes(report.n_bytes)}: {verdict}")


@app.command("rm")
def remove(
    store: StoreArgument,
    variants: Annotated[list[str], typer.Argument(metavar="VARIANT...", help="Names of variants.")],
    json: JsonFlag = False,
) -> None:
    """Remove variants; their shards stay until gc."""
    opened = Store.open(store)
    for name in variants:
        opened.check_variant_exists(name)  # all of them exist, or nothing is removed
    for name in variants:
        opened.remove(name)
    if json:
        print_json({"removed": variants})
    else:
        say(f"removed {', '.join(variants)}; free the space with: lamella store gc {store}")


@app.command("gc")
def collect_garbage(store: StoreArgument, json: JsonFlag = False) -> None:
    """Delete shards that no variant uses, and what interrupted builds left behind."""
    report = Store.open(store).collect_garbage()
    if json:
        print_json(fields_of(report))
    else:
        say(f"freed {format_bytes(report.freed_bytes)}: {report.n_shards} shards, {report.n_incoming} unfinished files")


@app.command("du")
def usage(store: StoreArgument, json: JsonFlag = False) -> None:
    """What the variants take together, against the sum of each alone."""
    found = Store.open(store).usage()
    if json:
        print_json(fields_of(found))
        return
    shown = table("variant", ">size", ">its own", ">shared", "its own share")
    for v in found.variants:
        own = v.own_bytes / v.n_bytes
        sizes = map(format_bytes, (v.n_bytes, v.own_bytes, v.n_bytes - v.own_bytes))
        shown.add_row(v.name, *sizes, f"{bar(own)} {own:.0%}")
    stdout.print(shown)
    joint, alone = found.joint_bytes, found.sum_of_variants_bytes
    share = f", {joint / alone:.0%} of it" if alone else ""
    say(f"{format_bytes(joint)} together; as separate files {format_bytes(alone)}{share}")
    if found.unused_bytes:
        say(f"{format_bytes(found.unused_bytes)} are used by no variant; free them with: lamella store gc {store}")


def _shares_with(used: VariantUsage) -> str:
    return "" if used.nearest is None else f"{used.nearest} ({used.nearest_bytes / used.n_bytes:.0%})"


def layer_strip(variant: Variant) -> str:
    """One character a layer: its bits (F: ten to sixteen), the mean where types are mixed (m: not known)."""
    return "".join(map(_bits_character, variant.plan.layers))


def _bits_character(layer: LayerPlan) -> str:
    if layer.precision in MENU or layer.precision in GGML_TYPES:
        bits = int(nominal_bits(layer.precision))
    elif layer.bits_per_weight is not None:
        bits = round(layer.bits_per_weight)
    else:
        return layer.precision[:1]
    return "F" if bits >= 10 else str(bits)


def _summary(variant: Variant) -> dict[str, object]:
    plan = variant.plan
    return {
        "name": variant.name,
        "bytes": variant.n_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "average_bits": plan.average_bits,
        "policy": plan.policy,
        "scheme": plan.scheme,
        "precisions": [x.precision for x in plan.layers],
    }


def fields_of(report: object) -> dict[str, object]:
    """A report's attributes, for ``--json``."""
    plain: dict[str, object] = msgspec.to_builtins(report)
    return plain
