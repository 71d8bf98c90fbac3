"""One training step of one arm in a process of its own; prints one JSON object.

python -m benchmarks.step ours lora --model fm-tiny --batch mixed-4
"""

import argparse
import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import ARMS, METHODS, build, make_optimizer, prepare, step_of
from benchmarks.batches import make_groups
from benchmarks.models import SIZES


def memory_mb(field: str) -> float:
    """Read a field of this process's memory, in units of 1e6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"no {field} in /proc/self/status")


def forget_peak() -> None:
    """Let the peak of this process's memory start anew, without what its allocator keeps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(
    arm: str, method: str, *, model_name: str, batch_kind: str, num_crops: int, vocabulary: int
) -> dict[str, Any]:
    """Warm up on a small batch, then measure one step.

    Returns:
        CPU and wall seconds, peak of the memory over that before the step (1e6 bytes), loss, norm
        of the gradients, real and supervised tokens.
    """
    size = SIZES[model_name]
    model, config = build(arm, method, size, vocabulary or None)
    shape = {"num_crops": num_crops, "vocabulary": config.vocab_size}
    groups = make_groups(batch_kind, **shape)
    batch = prepare(arm, groups, num_crops)
    # The step before has made the optimizer's states, and moved no weight.
    optimizer = make_optimizer(arm, model)
    step = step_of(arm, model, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
    step(prepare(arm, make_groups("images-1", num_crops=1, vocabulary=config.vocab_size), 1))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    forget_peak()
    before = memory_mb("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    loss, norm = step(batch)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    examples = [example for group in groups for example in group]
    return {
        "arm": arm,
        "method": method,
        "model": model_name,
        "batch": batch_kind,
        "num_crops": num_crops,
        "vocabulary": config.vocab_size,
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_mb": memory_mb("VmHWM") - before,
        "loss": loss,
        "grad_norm": norm,
        "tokens": sum(len(example["input_ids"]) for example in examples),
        "supervised": sum(int((example["labels"] != -100).sum()) for example in examples),
    }


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--model", choices=SIZES, default="fm-tiny")
    parser.add_argument("--batch", default="mixed-4")
    parser.add_argument("--num_crops", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=0, help="instead of the model's own")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measure(
        options.arm,
        options.method,
        model_name=options.model,
        batch_kind=options.batch,
        num_crops=options.num_crops,
        vocabulary=options.vocabulary,
    )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
