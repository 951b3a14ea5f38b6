"""Files that nobody else may read: keys, invites, who belongs to a cluster."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from lamella.store.files import make_folder, storage_errors, sync_folder

PRIVATE_FILE_MODE, PRIVATE_FOLDER_MODE = 0o600, 0o700


def make_private_folder(folder: Path) -> None:
    """A folder of this user alone; one that is there is made so.

    Raises:
        StorageFailed: the file system refused.
    """
    with storage_errors(folder, "create"):
        make_folder(folder)
        folder.chmod(PRIVATE_FOLDER_MODE)


def write_private(path: Path, data: bytes) -> None:
    """``path`` holds ``data`` when this returns, or what it held before if this raises.  Others can never read it.

    Raises:
        StorageFailed: the file system refused.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with storage_errors(path, "write"):
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
            with open(fd, "wb") as file:  # noqa: PTH123 (a descriptor)
                file.write(data)
                file.flush()
                os.fsync(fd)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
