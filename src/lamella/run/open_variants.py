"""Which variants of a running model are open, and which of them somebody needs.

Bookkeeping only: nothing here opens a shard or waits.  Leases are closed when a variant is let go.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from concurrent.futures import Future

from lamella.run.prepared import PreparedVariant, Ready


class OpenVariants:
    """The variants of one model.  ``LiveVariants`` holds a lock around everything here.

    Attributes:
        current: what runs; None before the first.
        warm: what was run or held, by name, least recently used first; the running one included.
        held: how often each is held.
        pending: what is being prepared, or was and has not been used, in order.
    """

    def __init__(self) -> None:
        self.current: PreparedVariant | None = None
        self.warm: OrderedDict[str, PreparedVariant] = OrderedDict()
        self.held: Counter[str] = Counter()
        self.pending: dict[str, Future[Ready]] = {}

    def is_in_use(self, name: str) -> bool:
        """Whether a warm variant runs or is held."""
        return name in self.held or (self.current is not None and self.warm[name] is self.current)

    @property
    def in_use(self) -> list[PreparedVariant]:
        """What runs and what is held.  What runs need not be warm: it may have been replaced in the store."""
        return [*([self.current] if self.current else ()), *(self.warm[name] for name in self.held)]

    @property
    def ids_in_use(self) -> set[str]:
        """Shards of what runs and what is held."""
        return {i for p in self.in_use for i in p.shard_ids}

    @property
    def held_ids(self) -> set[str]:
        """Shards of what is held."""
        return {i for name in self.held for i in self.warm[name].shard_ids}

    @property
    def needed_ids(self) -> set[str]:
        """Shards of all that is in use, warm or prepared."""
        ready = [*self.warm.values(), *(p for p in self.prepared if isinstance(p, PreparedVariant))]
        return self.ids_in_use.union(*(p.shard_ids for p in ready))

    @property
    def is_preparing(self) -> bool:
        """Whether a preparation is under way or waits for its turn."""
        return not all(f.done() for f in self.pending.values())

    @property
    def prepared(self) -> list[Ready]:
        """What was prepared and has not been used."""
        done = (f for f in self.pending.values() if f.done() and not f.cancelled() and not f.exception())
        return [f.result() for f in done]

    def spare(self, besides: str = "") -> dict[str, Ready]:
        """What is open or staged and not in use, the first to go first, but for a preparation of that name."""
        spare: dict[str, Ready] = {n: p for n, p in self.warm.items() if not self.is_in_use(n)}
        return spare | {p.variant.name: p for p in self.prepared if p.variant.name != besides}

    def is_ready(self, ready: Ready) -> bool:
        """Whether its shards are still open, or its files held: another change may have pushed it out."""
        return self.warm.get(ready.variant.name) is ready or any(p is ready for p in self.prepared)

    def let_go(self, name: str) -> None:
        """Forget a variant, unless it is in use."""
        if name in self.warm and not self.is_in_use(name):
            self.warm.pop(name).lease.close()
        unused = self._take_unused(name)
        if unused is not None:
            unused.lease.close()

    def _take_unused(self, name: str) -> Ready | None:
        """What was prepared under a name and has not been used; it is forgotten, and so is a failure."""
        pending = self.pending.get(name)
        if pending is None or not pending.done():
            return None
        del self.pending[name]
        return None if pending.cancelled() or pending.exception() else pending.result()

    def admit(self, prepared: PreparedVariant) -> None:
        """It is warm now, and the last used.

        What else is open under its name goes: the variant before or after it was replaced in the store.
        """
        name = prepared.variant.name
        for other in (self.warm.pop(name, None), self._take_unused(name)):
            if other is not None and other is not prepared and other is not self.current:
                other.lease.close()
        self.warm[name] = prepared

    def drop_beyond(self, n_warm: int) -> None:
        """Let go of all that is not in use but the last used, mixtures that run no more, and older preparations."""
        self.forget_failures()
        spare = [n for n in self.warm if not self.is_in_use(n)]
        for name in spare[: max(0, len(self.warm) - n_warm)]:
            self.let_go(name)
        for name in [n for n, p in self.warm.items() if p.is_mixed and p is not self.current]:
            self.let_go(name)
        for prepared in self.prepared[:-1]:
            self.let_go(prepared.variant.name)

    def forget_failures(self) -> None:
        """Preparations that failed or were cancelled."""
        for name in [n for n, f in self.pending.items() if f.done() and (f.cancelled() or f.exception())]:
            del self.pending[name]

    def close(self) -> None:
        """Let go of everything."""
        self.forget_failures()
        for ready in (*self.warm.values(), *self.prepared):
            ready.lease.close()
