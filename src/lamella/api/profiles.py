"""Profiles of a store's variants on this machine: measured, kept, and found again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lamella.api.documents import artifact_bytes
from lamella.api.variants import evaluate, open_store
from lamella.core.artifacts import Variant
from lamella.core.errors import ArtifactError, InvalidRequest, StoreError
from lamella.core.model import ModelIdentity
from lamella.evaluating.evaluation import Exams, Row
from lamella.evaluating.scoring import ChoiceScores
from lamella.llama import devices
from lamella.qos.profiles.documents import (
    EngineShape,
    Machine,
    Profile,
    Quality,
    VariantProfile,
    content_of,
    from_json,
    to_json,
)
from lamella.qos.profiling.points import Points
from lamella.qos.profiling.shape import shape_of, shape_options
from lamella.store.files import new_file
from lamella.store.store import Store

if TYPE_CHECKING:
    from lamella.batching.settings import EngineSettings

LATER_FIELDS = ("n_cells", "device", "is_reproducible")
"""Of an engine's shape; left out of a file's name where they say nothing, so that what was kept before is found."""
OnPoint = Callable[[str, int, int, str], None]
"""(variant, points done, of how many, what is measured)."""


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        ArtifactError: it cannot be read, or is no profile.
    """
    return from_json(artifact_bytes(path), str(path))


def profile_file(model: ModelIdentity, machine: Machine, engine: EngineShape, cache_folder: Path) -> Path:
    """Where the profile of a model on a machine is kept unless another file is named."""
    shape = {k: v for k, v in msgspec.to_builtins(engine).items() if v or k not in LATER_FIELDS}
    asked = msgspec.json.encode([model, machine, shape], order="sorted")
    return cache_folder / "profiles" / f"{hashlib.sha256(asked).hexdigest()[:32]}.json"


def profile(
    settings: EngineSettings,
    variants: Sequence[str] = (),
    *,
    out: Path | None = None,
    cache_folder: Path,
    exams: Exams | None = None,
    points: Points | None = None,
    again: bool = False,
    on_point: OnPoint = lambda _variant, _done, _total, _what: None,
) -> tuple[Profile, Path]:
    """Measure the variants of a store that the profile does not have yet at these points; each is kept at once.

    Args:
        settings: how the server's engine will run.
        variants: names; none: all of the store.
        out: the profile's file; None: one in the cache folder that is found again (``find_profile``).
        exams: measure quality on these; None takes what the plans predict.
        points: which speeds; None for the usual ones.
        again: measure also what the profile has.

    Returns:
        The profile and its file.

    Raises:
        InvalidRequest: ``out`` holds a profile of another model, machine or engine; no device of that name.
        UnknownVariant, StoreError, EngineFailed: a variant is not there or cannot be run.
    """
    from lamella.qos.profiling.conditions import this_machine
    from lamella.qos.profiling.energy import EnergyMeter
    from lamella.qos.profiling.measure import measure_variant

    if not settings.rpc:  # else it may be one of another process, which only the engine knows
        devices.besides_cpu(settings.device)
    store = open_store(Path(settings.store))
    chosen = [store.variant(name) for name in variants] or list(store.variants())
    if not chosen:
        raise StoreError(f"{store.path} holds no variant yet; build one with: lamella build MODEL {store.path}")
    points = points or Points()
    empty = Profile(store.identity, this_machine(settings.n_threads), shape_of(settings))
    path = out or profile_file(empty.model, empty.machine, empty.engine, cache_folder)
    what_is_there = _kept if out is None else _continued  # a file that somebody named is not written over
    found = what_is_there(path, empty)
    qualities = _qualities(Path(settings.store), chosen, exams)
    with EnergyMeter() as meter:
        if found.idle_watts is None:
            found = replace(found, idle_watts=meter.idle_watts())
        for variant in chosen:
            known = None if again else _known(found, variant, points)
            quality = qualities.get(variant.name) or (known.quality if known else _predicted(variant))
            measured = replace(known, quality=quality) if known else measure_variant(
                variant, settings, points, quality,
                other=next((v.name for v in store.readable_variants()[0] if v.name != variant.name), None),
                meter=meter, idle_watts=found.idle_watts,
                on_point=lambda done, total, what, name=variant.name: on_point(name, done, total, what),  # type: ignore[misc]
            )  # fmt: skip
            there = what_is_there(path, found)  # another process may have measured others meanwhile
            found = _with(replace(there, idle_watts=found.idle_watts), measured)
            write_profile(found, path)
    return found, path


@dataclass(frozen=True, slots=True)
class KnownVariants:
    """The variants that an engine serves, and what was kept of them: looked up once, by ``known_variants``.

    Attributes:
        settings: of the engine.
        variants: that it serves.
        profile: what ``profile`` kept for such an engine; None where nothing was measured, or what was cannot be read
            any more.
    """

    settings: EngineSettings
    variants: tuple[Variant, ...]
    profile: Profile | None

    def unmeasured(self, points: Points | None = None) -> tuple[str, ...]:
        """Those that no kept profile has with the shards that they have now.

        Args:
            points: at which they have to be measured; None for the usual ones.
        """
        found, points = self.profile, points or Points()
        return tuple(v.name for v in self.variants if found is None or _known(found, v, points) is None)

    def part_of(self, profile: Profile) -> Profile:
        """The part of a profile that is of these variants.

        Raises:
            InvalidRequest: it lacks one of them: a policy that does not know the running variant decides nothing.
        """
        served = {variant.name for variant in self.variants}
        missing = served - {variant.name for variant in profile.variants}
        if missing:
            known = ", ".join(sorted(v.name for v in profile.variants)) or "none"
            raise InvalidRequest(
                f"the profile lacks variants that are served: {', '.join(sorted(missing))}; it has: {known}; "
                f"measure them: {_how_to_measure(self.settings)}"
            )
        return replace(profile, variants=tuple(v for v in profile.variants if v.name in served))


def known_variants(settings: EngineSettings, cache_folder: Path, store: Store | None = None) -> KnownVariants:
    """What an engine serves, and what is known of it.

    Args:
        store: that of the settings, where somebody has opened it; None: it is opened.

    Raises:
        UnknownVariant, StoreFormatError: of what shall be served.
    """
    store = store or open_store(Path(settings.store))
    served = store.readable_variants()[0] if settings.variants is None else map(store.variant, settings.variants)
    try:
        found = _find(store, settings, cache_folder)
    except (InvalidRequest, ArtifactError):
        found = None
    return KnownVariants(settings, tuple(served), found)


def find_profile(settings: EngineSettings, cache_folder: Path) -> Profile:
    """The profile that ``profile`` kept for a store's model on this machine.

    Raises:
        InvalidRequest: there is none.
        ArtifactError: it cannot be read.
    """
    return _find(open_store(Path(settings.store)), settings, cache_folder)


def _find(store: Store, settings: EngineSettings, cache_folder: Path) -> Profile:
    from lamella.qos.profiling.conditions import this_machine

    path = profile_file(store.identity, this_machine(settings.n_threads), shape_of(settings), cache_folder)
    if not path.is_file():
        raise not_measured(settings)
    return read_profile(path)


def not_measured(settings: EngineSettings) -> InvalidRequest:
    """That no profile is kept for an engine, and how to get one."""
    return InvalidRequest(
        f"the variants of {settings.store} were not measured on this machine for such an engine; "
        f"measure them: {_how_to_measure(settings)}"
    )


def _how_to_measure(settings: EngineSettings) -> str:
    return " ".join(["lamella profile", settings.store, *shape_options(settings)])


def keep_learned(began: Profile, learned: Profile, path: Path) -> None:
    """Write what a server has learned of its variants; what the file has of others stays, and what was measured since.

    Args:
        began: what the server began with.
    """
    before = {variant.name: variant for variant in began.variants}
    found = _kept(path, replace(learned, variants=()))
    there = {variant.name: variant for variant in found.variants}
    changed = [v for v in learned.variants if v != before[v.name] == there.get(v.name, before[v.name])]
    if changed:
        write_profile(_with(found, *changed), path)


def _continued(path: Path, empty: Profile) -> Profile:
    """What the file has, if it is of the same model, machine and engine."""
    if not path.is_file():
        return empty
    found = read_profile(path)
    for what in ("model", "machine", "engine"):
        if getattr(found, what) != getattr(empty, what):
            raise InvalidRequest(f"{path} holds a profile of another {what}; name another file, or remove this one")
    return found


def _kept(path: Path, empty: Profile) -> Profile:
    """What the cache has; a file there that cannot be read is measured anew."""
    try:
        return _continued(path, empty)
    except ArtifactError:
        return empty


def _known(profile: Profile, variant: Variant, points: Points) -> VariantProfile | None:
    """What is known of exactly these shards, if it was measured at these points."""
    wanted = points.within(profile.engine)
    for known in profile.variants:
        if known.name == variant.name and known.content == content_of(variant):
            has_prompts = {point.n_tokens for point in known.prompt}.issuperset(wanted.prompts)
            has_steps = {point.n_sequences for point in known.steps}.issuperset(wanted.sequences)
            return known if has_prompts and has_steps else None
    return None


def _with(profile: Profile, *measured: VariantProfile) -> Profile:
    names = {variant.name for variant in measured}
    others = (v for v in profile.variants if v.name not in names)
    return replace(profile, variants=tuple(sorted((*others, *measured), key=lambda v: v.name)))


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile, in place of what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = to_json(profile)
    with new_file(path, len(data), replace=True) as file:
        file.write(data)


def _predicted(variant: Variant) -> Quality:
    return Quality(kl=variant.plan.predicted_loss)


def _qualities(store: Path, variants: Sequence[Variant], exams: Exams | None) -> Mapping[str, Quality]:
    """Measured quality of each variant; empty without exams.  The reference diverges from itself by nothing."""
    if exams is None:
        return {}
    found = evaluate(store, [v.name for v in variants], exams)
    return {name: _quality(row, is_reference=name == found.reference) for name, row in found.rows.items()}


def _quality(row: Row, *, is_reference: bool) -> Quality:
    kl = row.text.kl if row.text else None
    tasks = {name: scores.acc.value for name, scores in row.tasks.items() if isinstance(scores, ChoiceScores)}
    return Quality(
        kl=0.0 if is_reference else (kl.value if kl else row.variant.plan.predicted_loss),
        is_measured=is_reference or kl is not None,
        perplexity=row.text.perplexity.value if row.text else None,
        tasks=tasks,
    )
