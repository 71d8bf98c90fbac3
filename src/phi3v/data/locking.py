"""A lock among processes that leaves nothing behind."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path` for a while; other processes of this machine wait meanwhile.

    The kernel frees the lock of a process that dies, so a lock file that was left behind holds
    nobody up. Where the file system has no locks, nobody waits: the work that is guarded must be
    harmless when done twice.

    Args:
        path: The lock file; removed afterwards.

    Raises:
        OSError: If the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                yield
                return
            if not _is_current(path, descriptor):
                continue  # the holder before us has removed this file; others lock a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
