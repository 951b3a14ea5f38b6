"""The machine that a profile which is measured here holds for."""

from __future__ import annotations

from lamella.core.cores import usable_cores
from lamella.llama import library
from lamella.qos.profiles.documents import Machine
from lamella.run.kernel_table import processor_name


def this_machine(n_threads: int) -> Machine:
    """What a profile measured here holds for; ``n_threads`` 0: the cores that this process may use."""
    return Machine(processor_name(), n_threads or usable_cores(), library.installed_version())
