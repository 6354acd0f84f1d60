"""A lock on a file, so that two processes do not fetch one model at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tinylm.errors import SourceError


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Holds the lock of `file`, which the system takes back when the process dies.

    Raises SourceError, saying that `what` is going on elsewhere, where another process holds it. The file
    stays: to delete a lock is to let two in.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab") as stream:
        try:
            _lock(stream)
        except OSError:
            raise SourceError(f"another process is {what} at this moment; wait until it is done") from None
        yield


def _lock(stream: BinaryIO) -> None:
    # Closing the file unlocks it. Written so that type checkers follow the platform.
    if sys.platform == "win32":
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
