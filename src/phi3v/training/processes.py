"""How a run starts under a launcher; see `phi3v.data.processes` for what the processes share."""

import os
import socket

from torch import distributed

# As in sysexits.h.
STATUS_IO_ERROR = 74


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
