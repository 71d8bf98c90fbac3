"""How a run starts under a launcher; see `phi3v.data.processes` for what the processes share."""

import os
import socket
import sys
from collections.abc import Callable

from torch import distributed

from phi3v.data.processes import USER_ERRORS

# As in sysexits.h.
STATUS_IO_ERROR = 74


def run_as_command(name: str, main: Callable[[list[str]], int]) -> int:
    """Run a command that was started as a module of its own, as launchers do.

    Returns:
        Exit status: 2 after an error of the user, 74 where a file cannot be read or written, 130
            when interrupted; each is told in one line.
    """
    try:
        return main(sys.argv[1:])
    except (*USER_ERRORS, OSError) as error:
        if os.environ.get("PHI3V_DEBUG") == "1":
            raise
        print(f"phi3v {name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, USER_ERRORS) else STATUS_IO_ERROR
    except KeyboardInterrupt:
        print(f"phi3v {name}: interrupted", file=sys.stderr)
        return 130


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
