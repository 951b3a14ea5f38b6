"""OpenMP's threads, with which llama.cpp computes its products.

libgomp keeps a team for each thread that ever computed, as long as that thread lives.  Where all of them together are
more than there are cores, they sleep at every barrier instead of spinning (``gomp_throttled_spin_count``), and a graph
has hundreds: a step of 9 ms took 24 where another thread of the process had computed before (docs/log.md).
"""

from __future__ import annotations

from lamella.llama.library import load

SOFT = 1  # omp_pause_soft of omp.h, OpenMP 5.0


def release_team() -> bool:
    """Let the calling thread's team go; what it computes next makes a new one.  Nothing else may compute meanwhile.

    Returns:
        Whether there was an OpenMP to ask: False where llama.cpp was built without one, or with one before 5.0.
    """
    pause = getattr(load().ggml, "omp_pause_resource_all", None)  # of a library that libggml was linked with
    return pause is not None and pause(SOFT) == 0
