"""What a row of the table for GPUs runs on: model, optimizer, clock and memory of a device."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arms import build
from benchmarks.gpu_rows import Row
from benchmarks.models import Size, make_model, model_config
from benchmarks.step import forget_peak, memory_mb
from phi3v.model.compiling import can_fuse, fuse_elementwise
from phi3v.model.loading import choose_attention, load_model, quantization_config


def make_base(row: Row, size: Size, device: torch.device) -> Any:
    """Make random weights in bfloat16 on the device; 4-bit ones are loaded as training does."""
    config = model_config(size)
    with torch.device(device):
        model = make_model(config, torch.bfloat16)
    if row.bits == 16:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        return load_model(
            folder, torch.bfloat16, device=device, quantization=quantization_config(4)
        ).train()


def make_trained(row: Row, size: Size, device: torch.device) -> Any:
    """Make the model of a row as training has it: kernels chosen, steps fused where that works."""
    base = make_base(row, size, device)
    base.set_attn_implementation(
        "sdpa" if row.arm.startswith("original") else choose_attention(torch.bfloat16)
    )
    with torch.device(device):
        model, _ = build(
            row.arm,
            row.method,
            replace(size, lora_rank=row.rank),
            dtype=torch.bfloat16,
            train_vision=row.train_vision,
            base=base,
        )
    if row.arm.startswith("ours") and device.type == "cuda" and can_fuse(device):
        fuse_elementwise(model)
    return model


def make_optimizer(row: Row, model: nn.Module) -> torch.optim.Optimizer:
    """Make AdamW over what trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if row.optimizer == "8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trained, lr=1e-5)
    return torch.optim.AdamW(trained, lr=1e-5, fused=not row.arm.startswith("original"))


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Copy a batch, without waiting where it lies in pinned memory."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def pinned(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Put a batch where the device can fetch it, as the data loader does."""
    if device.type != "cuda":
        return batch
    return {
        name: value.pin_memory() if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def time_calls(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """Run calls one behind the other; seconds of each, by the clock of the device.

    On a GPU the host runs ahead, as it does in training.
    """
    if device.type != "cuda":
        seconds = []
        for call in calls:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
    torch.cuda.synchronize(device)
    marks[0].record()
    for call, mark in zip(calls, marks[1:], strict=True):
        call()
        mark.record()
    torch.cuda.synchronize(device)
    return [one.elapsed_time(other) / 1000 for one, other in zip(marks, marks[1:], strict=False)]


def peak_gb(device: torch.device) -> float:
    """Return the most memory that was taken, in 1e9 bytes; on a CPU that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return memory_mb("VmHWM") / 1e3


def forget_peak_of(device: torch.device) -> None:
    """Let the peak start anew, without what making the model has left."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_peak()
