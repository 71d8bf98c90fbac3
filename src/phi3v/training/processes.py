"""Several processes: how a run starts under a launcher, and which process speaks for all.

Launchers (deepspeed, torchrun, accelerate, srun) start the same command once per device and tell
each process its place in the environment.
"""

import contextlib
import io
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError)
SECONDS_TO_SPEAK = 15


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


def run_as_command(name: str, main: Callable[[list[str]], int]) -> int:
    """Run a command that was started as a module of its own, as launchers do.

    Returns:
        Exit status: 2 after an error of the user, which is told in one line.
    """
    try:
        return main(sys.argv[1:])
    except USER_ERRORS as error:
        if os.environ.get("PHI3V_DEBUG") == "1":
            raise
        print(f"phi3v {name}: error: {error}", file=sys.stderr)
        return 2


def connect_for_deepspeed(*, on_cpu: bool) -> None:
    """Make the process group that DeepSpeed needs, also for a single process without a launcher.

    Args:
        on_cpu: Connect by gloo now. The library would do so too late on a CPU: ZeRO-3 must know
            the number of processes before the arguments are checked and the model is loaded.
    """
    if "RANK" not in os.environ:
        # DeepSpeed would look for MPI otherwise.
        place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": _free_port()}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    if on_cpu and not distributed.is_initialized():
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def disconnect() -> None:
    """Leave the process group in good order; a group that is just dropped warns at exit."""
    if distributed.is_initialized():
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
