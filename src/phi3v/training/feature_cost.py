"""What ``--cache_vision`` costs, said before the first step."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v.model.cost import forward_cost
from phi3v.model.vision import Phi3VImageEmbedding
from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.flags import RunArguments

logger = logging.getLogger(__name__)

# What the advice assumes: operations of a tower and bytes of a disk in a second.
GPU_RATE, CPU_RATE, DISK_RATE = 4e14, 5e10, 1.5e9


@dataclass(frozen=True)
class CacheCost:
    """What a cache takes and saves.

    Attributes:
        num_bytes: Size of all features.
        tower: Estimated seconds of the tower in an epoch.
        epochs: Epochs of the run.
    """

    num_bytes: int
    tower: float
    epochs: float

    @property
    def reading(self) -> float:
        """Seconds of an epoch that reading the features takes."""
        return self.num_bytes / DISK_RATE

    @property
    def verdict(self) -> str:
        """Whether reading features takes less time than making them."""
        if self.epochs < 2:
            return "it pays for a later run only: this one has fewer than two epochs"
        if self.tower * (self.epochs - 1) <= self.reading * self.epochs:
            return "hardly worth it: the tower is as fast as the disk"
        return "worth it"

    def advice(self, folder: str | Path) -> str:
        """Say how large a cache gets, whether it fits, and whether it pays."""
        free = shutil.disk_usage(folder).free
        room = ""
        if free < self.num_bytes:
            room = (
                f"; {free / 1e9:.2f} GB are free there: what does not fit, unless it is there from "
                "an earlier run, is encoded in every epoch"
            )
        return (
            f"--cache_vision {folder}: up to {self.num_bytes / 1e9:.2f} GB in the first epoch; "
            f"read back in about {self.reading:.0f} s of an epoch (at {DISK_RATE / 1e9:g} GB/s) "
            f"instead of {self.tower:.0f} s of the tower: {self.verdict}{room}"
        )


def bytes_per_crop(vision: Phi3VImageEmbedding) -> int:
    """Return the size of the features of one crop, in the type that they are used in."""
    sizes = vision.config.vision
    return sizes.patches_per_side**2 * sizes.hidden_size * vision.sub_GN.element_size()


def cost_of_cache(
    vision: Phi3VImageEmbedding, num_crops: int, *, rate: float, epochs: float
) -> CacheCost:
    """Weigh the cache of so many different crops.

    Args:
        vision: Gives the sizes; may be without memory.
        num_crops: Crops with the global ones; those of equal pictures counted once.
        rate: Operations of the tower in a second, of all devices together.
        epochs: Epochs of the run.
    """
    seconds = num_crops * forward_cost(vision.config).per_crop / rate
    return CacheCost(num_crops * bytes_per_crop(vision), seconds, epochs)


def say_cost(
    arguments: RunArguments, vision: Phi3VImageEmbedding, num_crops: int, train_set: Any
) -> None:
    """Say before the first step how large the cache gets; of a stream, what one crop takes."""
    training, folder = arguments.training, str(arguments.data.cache_vision)
    if num_crops:
        rate = (GPU_RATE if training.device.type == "cuda" else CPU_RATE) * training.world_size
        epochs = num_epochs(
            training, len(train_set) / training.train_batch_size, training.world_size
        )
        logger.warning(cost_of_cache(vision, num_crops, rate=rate, epochs=epochs).advice(folder))
    elif arguments.data.streaming or not arguments.data.check_data:
        logger.warning(
            "--cache_vision %s: %.2f MB for each crop of a picture; how many there are is not "
            "known beforehand of a stream, or with --check_data False",
            folder,
            bytes_per_crop(vision) / 1e6,
        )


def num_epochs(training: Phi3VTrainingArguments, num_batches: float, num_processes: int) -> float:
    """Return how often a run goes through its data, of so many batches."""
    if training.max_steps <= 0:
        return training.num_train_epochs
    return training.max_steps * training.gradient_accumulation_steps * num_processes / num_batches
