"""How many variants a server whose policy changes them keeps ready in memory.

    warm_variants(profile, available_bytes=8 * GIB)         # 4: all of a small model

A policy changes between all of its variants within seconds.  One that is not warm has to be prepared first, by the
cores that the streams compute with: with two of four variants warm, preparing them was felt in the promised times
(docs/log.md).
"""

from __future__ import annotations

from lamella.qos.profiles.documents import Profile

LEAST_WARM = 2
SHARE_OF_AVAILABLE = 0.5
"""Of what could be allocated now; the rest stays with the KV cache and other processes.  Under memory pressure what is
only warm goes first, whatever is said here."""


def warm_variants(profile: Profile, available_bytes: int) -> int:
    """As many as fit whichever run: the largest are counted, each as if it shared nothing with the others.

    Args:
        available_bytes: that the engine may use, by the machine or by a ceiling of its own.
    """
    room = SHARE_OF_AVAILABLE * available_bytes
    n_warm = 0
    for n_bytes in sorted((variant.memory_bytes for variant in profile.variants), reverse=True):
        room -= n_bytes
        if room < 0:
            break
        n_warm += 1
    return max(LEAST_WARM, n_warm)
