"""Trains under a launcher, and counts the models that still hold the process group at its end."""

import gc
import sys
from typing import Any

from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from phi3v.training import train

destroy = distributed.destroy_process_group


def count_and_destroy(*args: Any, **kwargs: Any) -> None:
    holding = sum(type(one) is DistributedDataParallel for one in gc.get_objects())
    print(f"models that hold the group: {holding}", flush=True)
    destroy(*args, **kwargs)


if __name__ == "__main__":
    distributed.destroy_process_group = count_and_destroy
    sys.exit(train.main(sys.argv[1:]))
