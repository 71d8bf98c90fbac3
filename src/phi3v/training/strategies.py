"""How a run is spread over GPUs, and what of it each of them then holds."""

from dataclasses import dataclass
from typing import Any

from phi3v.training.sharding import read_config, zero_stage


@dataclass(frozen=True)
class Strategy:
    """How weights, gradients and states are spread over GPUs.

    Attributes:
        name: As users know it.
        spread: How many of states, gradients and weights, in this order, are spread: 0 to 3.
        keeps_copies: Whether float32 copies of what trains lie beside the states (DeepSpeed).
        offloads: Whether all three lie in main memory.
    """

    name: str
    spread: int
    keeps_copies: bool = False
    offloads: bool = False


STRATEGIES = {
    "ddp": Strategy("DDP", 0),
    "zero1": Strategy("ZeRO-1", 1, True),
    "zero2": Strategy("ZeRO-2", 2, True),
    "zero3": Strategy("ZeRO-3", 3, True),
    "fsdp": Strategy("FSDP2", 3),
    "offload": Strategy("ZeRO-3, offload", 3, True, True),
}


def strategy_of(deepspeed: str | dict[str, Any] | None) -> str:
    """Name the strategy that a DeepSpeed configuration asks for."""
    if not deepspeed:
        return "ddp"
    settings = read_config(deepspeed)
    stage = zero_stage(settings)
    if "offload_optimizer" in settings.get("zero_optimization", {}):
        return "offload"
    return f"zero{stage}" if stage else "ddp"
