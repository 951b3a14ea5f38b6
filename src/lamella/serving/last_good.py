"""The variant that a new engine is to load."""

from __future__ import annotations


class LastGood:
    """The variant that runs, as long as it has not killed the engine.

    A variant that was switched to is in doubt until it has computed something.

    Attributes:
        variant: what a new engine is to load; None for the engine's own choice.
    """

    def __init__(self, variant: str | None) -> None:
        self.variant = variant
        self._before: str | None = None
        self._is_in_doubt = False

    def loaded(self, variant: str) -> None:
        """An engine came up with it."""
        self.variant, self._is_in_doubt = variant, False

    def switched(self, variant: str) -> None:
        """The engine says that it runs at it from now on."""
        if variant != self.variant and not self._is_in_doubt:
            self._before, self._is_in_doubt = self.variant, True
        self.variant = variant

    def computed(self, variant: str) -> None:
        """The engine computed a token with it, for a request that takes whatever runs."""
        self.variant, self._is_in_doubt = variant, False

    def died(self, *, at_work: bool) -> None:
        """The engine died; ``at_work`` if there was something to compute.  An idle one did not die of its variant."""
        if self._is_in_doubt and at_work:
            self.variant, self._is_in_doubt = self._before, False
