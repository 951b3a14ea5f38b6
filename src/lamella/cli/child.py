"""Another ``lamella`` command, run to its end in a process of its own.

A server's front loads no llama.cpp: what has to be measured or built before it can serve is done by such a child.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from lamella.core.errors import INTERRUPTED_EXIT_CODE


def lamella_in_child(arguments: Sequence[str]) -> int:
    """Its exit code.  What it says for people goes to the error stream: standard output is this command's own."""
    command = [sys.executable, "-P", "-m", "lamella", *arguments]
    with subprocess.Popen(command, stdout=sys.stderr) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child got it, too
            child.wait()
            return INTERRUPTED_EXIT_CODE
