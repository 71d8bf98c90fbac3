"""Runs a piece of work in a child process that is killed at one of its steps on the disk."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What the interpreter reports before a file is opened, made, renamed or removed.
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def survives(work: Callable[[], object], folder: Path, kill_at: int) -> bool:
    """Do the work in a child that gets SIGKILL right before its step ``kill_at`` under a folder.

    Returns:
        Whether the work was finished because it takes fewer steps.
    """
    child = os.fork()
    if child == 0:
        kill_at_step(folder, kill_at)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0


def kill_at_step(folder: Path, kill_at: int) -> None:
    """Count the steps of this process on files under a folder, and end it before one of them."""
    seen = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _EVENTS or not str(args[0]).startswith(str(folder)):
            return
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
