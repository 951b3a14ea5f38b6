"""Files that somebody names, looked at before they are opened.

    data = read_file(path)

To open a named pipe is to wait until somebody writes to it, and a device may have no end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_file(path: Path) -> None:
    """Refuse what cannot be read from its beginning to its end.

    A pipe that has no name in any folder is taken: ``/dev/stdin``, or the shell's ``<(zcat text.gz)``.  Somebody is at
    its other end, and it ends when that process does.

    Raises:
        OSError: there is nothing, or it is a folder, a named pipe or a device; ``strerror`` says so.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind in _KINDS and not (kind == stat.S_IFIFO and _has_no_name(path)):
        raise OSError(errno.EINVAL, f"it is {_KINDS[kind]}, not a file", str(path))


def read_file(path: Path) -> bytes:
    """All of a file.

    Raises:
        OSError: as ``check_file``, or it cannot be read.
    """
    check_file(path)
    return path.read_bytes()


def _has_no_name(pipe: Path) -> bool:
    """Links below ``/dev/fd`` lead to ``pipe:[1234]``, which is in no folder."""
    return not pipe.resolve().exists()
