"""Who is slow, a node or the way to it: answers show that something is, and the link, measured anew, what.

    blame = Blame(link)                                # as it was when the node came
    slowdown = blame.look(now, link, pace)             # again and again, with the newest link
    if blame.wants_link: meter.hurry("laptop")

A node that is slow keeps its name for a while after its layers left it, since it shows nothing more.  A link is
measured whether it is used or not: what it explains is counted there, and never held against the node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lamella.cluster.links import MeasuredLink
from lamella.cluster.pace import Pace

SLOW = 2.0
"""A node that takes so many times as long as it did is slow; less is noise, or a longer context."""
FORGET_SECONDS = 600.0
"""A slow node whose layers went elsewhere shows nothing any more: after so long it is thought well of again."""
LINK_SECONDS = 10.0
"""The link is waited for so long; a node that cannot even be measured is slow."""
EXPLAINED = 0.5
"""Of what answers take longer: the link is to blame where it takes that share of it."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    slowdown: float
    until: float
    lost_seconds: float
    n_bytes: float


class Blame:
    """Of one node.

    Attributes:
        wants_link: whether the link is to be measured before anything is said.
    """

    def __init__(self, link: MeasuredLink) -> None:
        """``link`` is the way to the node when it was not slow."""
        self.wants_link = False
        self._at_first = link
        self._suspected: tuple[float, MeasuredLink] | None = None  # since when, and the link that was known then
        self._verdict: _Verdict | None = None

    def look(self, now: float, link: MeasuredLink, pace: Pace | None) -> float:
        """How many times as long the node is held to take as its speeds say.

        Args:
            now: seconds of a clock that does not go back.
            link: as it was measured last.
            pace: of the engine that computes with the node; None where none does.
        """
        if pace is not None:
            self._judge(now, link, pace)
        else:
            self.wants_link, self._suspected = False, None  # nobody waits for the link's measurement any more
            if self._verdict and self._explains(link, self._verdict.lost_seconds, self._verdict.n_bytes):
                self._verdict = None
        return self._verdict.slowdown if self._verdict and now < self._verdict.until else 1.0

    def _judge(self, now: float, link: MeasuredLink, pace: Pace) -> None:
        slowdown = round(2 * pace.slowdown) / 2  # in steps of a half, so that noise is no news
        self.wants_link = False
        if slowdown < SLOW:
            self._suspected = self._verdict = None
            return
        since, known = self._suspected = self._suspected or (now, link)
        if link is known and now - since < LINK_SECONDS:
            self.wants_link = True
        elif self._explains(link, pace.lost_seconds, pace.n_bytes):
            self._verdict = None
        else:
            self._verdict = _Verdict(slowdown, now + FORGET_SECONDS, pace.lost_seconds, pace.n_bytes)

    def _explains(self, link: MeasuredLink, lost_seconds: float, n_bytes: float) -> bool:
        """Whether a link is so much slower than at first that answers take longer by it."""
        longer = _there_and_back(link, n_bytes) - _there_and_back(self._at_first, n_bytes)
        return longer >= EXPLAINED * lost_seconds


def _there_and_back(link: MeasuredLink, n_bytes: float) -> float:
    """Of hidden states; as many bytes come back."""
    way = n_bytes / link.bytes_per_second if link.bytes_per_second else math.inf
    return link.round_trip_seconds + 2 * way
