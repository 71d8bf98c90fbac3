"""Several processes that share one work: their places, and which of them speaks for all.

Launchers (deepspeed, torchrun, accelerate, srun) start the same command once per device and tell
each process its place in the environment.
"""

import contextlib
import gc
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError)
SECONDS_TO_SPEAK = 15
# Processes whose shares differ wait for each other this long.
LONGEST_WAIT = timedelta(days=7)


def rank() -> int:
    """Return the number of this process among all; 0 without a launcher."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return how many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Swallow what is printed inside, except on the first process: all would print the same."""
    if rank() == 0:
        yield
        return
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let the first process of a machine report an error of the user that all of them meet.

    Those of argparse, which has already printed them, are among these.
    """
    try:
        yield
    except (*USER_ERRORS, SystemExit) as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            raise
        status = error.code if isinstance(error, SystemExit) else 2
        if status:
            # Launchers end all processes when one ends; the first must have spoken before.
            time.sleep(SECONDS_TO_SPEAK)
        sys.exit(status)


def connect() -> None:
    """Join the processes of a launcher through the CPU; without a launcher, do nothing."""
    if world_size() > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)


def wait_for_all() -> None:
    """Wait until every process has come this far."""
    if distributed.is_initialized():
        distributed.barrier()


def disconnect() -> None:
    """Leave the process group in good order; a group that is just dropped warns at exit.

    Nothing else may hold the group by then. A model under DDP, freed later, would wait for gloo's
    threads with the interpreter locked, and the last reduction of such a thread may wait for that
    lock: the process would never end.
    """
    if distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def decided_by_first(decide: Callable[[], T]) -> T:
    """Let the first process decide for all, so that no process sees what another has just done.

    Args:
        decide: Called on the first process only; its result must be picklable.

    Raises:
        ValueError: What ``decide`` raised, on every process; likewise the other errors of users.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return decide()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = decide()
        except USER_ERRORS as error:
            outcome[1] = error
    device = torch.device("cpu")
    if distributed.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    distributed.broadcast_object_list(outcome, src=0, device=device)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
