"""Locks among processes that leave nothing behind."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


class ProcessLock:
    """A lock that a process holds until it lets go or dies, whichever way; nobody waits for it.

    It belongs to this process alone: processes that it forks neither have it nor keep it alive.
    Within one process it excludes nobody.

    Args:
        path: The lock file; removed by who lets go.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock unless another process has it.

        Returns:
            Whether this process has it now.

        Raises:
            OSError: The file cannot be made, or its file system has no locks.
        """
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                self.path.unlink(missing_ok=True)
                raise
            if _is_current(self.path, descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # whoever had it has removed this file

    def release(self) -> None:
        """Let go, if this process has the lock."""
        if self._descriptor is not None:
            with suppress(OSError):
                # Its file system may be read-only or gone by now; a file left behind does no harm.
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
