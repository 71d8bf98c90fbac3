"""A lock that dies with its process, and with nothing else."""

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phi3v.data.locking import ProcessLock


@contextmanager
def elsewhere(work: Callable[[], object]) -> Iterator[int]:
    """Do something in another process, which then stays until it is killed."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        work()
        os.write(tell, b"x")
        signal.pause()
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


@pytest.fixture
def lock(tmp_path: Path) -> ProcessLock:
    return ProcessLock(tmp_path / "lock")


def test_lock_of_another_process_is_not_taken(lock: ProcessLock) -> None:
    with elsewhere(lock.take):
        assert not lock.take()
        lock.release()
        assert lock.path.exists()


def test_killed_process_keeps_nobody_out(lock: ProcessLock) -> None:
    with elsewhere(lock.take):
        pass
    assert lock.path.exists() and lock.take()
    lock.release()
    assert not lock.path.exists()


def test_forked_process_does_not_keep_the_lock_alive(lock: ProcessLock, tmp_path: Path) -> None:
    family = tmp_path / "family"

    def take_and_fork() -> None:
        lock.take()
        if (grandchild := os.fork()) == 0:
            signal.pause()
        family.write_text(str(grandchild))

    with elsewhere(take_and_fork):
        assert not lock.take()
    try:
        assert lock.take()
    finally:
        os.kill(int(family.read_text()), signal.SIGKILL)
    lock.release()


def test_file_removed_by_its_holder_is_made_anew(
    lock: ProcessLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockf: Any = fcntl.lockf
    removed = []

    def remove_first(descriptor: int, how: int) -> None:
        lockf(descriptor, how)
        if not removed:
            removed.append(lock.path.unlink())

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    assert lock.take() and lock.path.exists()
    lock.release()


def test_file_system_without_locks_is_an_error(
    lock: ProcessLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(OSError, match="No locks"):
        lock.take()
    assert not lock.path.exists()
