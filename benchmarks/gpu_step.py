"""One row of the table for GPUs in a process of its own; prints one JSON object.

    python -m benchmarks.gpu_step "LoRA, 16 crops" --steps 50

Weights are random, made on the device; samples have the shapes of real ones. The step is that of
training: copy the batch, forward, backward, clip, update. On the CPU the same code runs with a
small model, to try it out.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.arms import loss_of, prepare
from benchmarks.batches import make_groups, make_packs, sample
from benchmarks.counters import count_step
from benchmarks.gpu_model import (
    forget_peak_of,
    make_base,
    make_optimizer,
    make_trained,
    peak_gb,
    pinned,
    time_calls,
    to_device,
)
from benchmarks.gpu_rows import ANSWERS, STEPS, Answers, Row
from benchmarks.models import IMAGE_TOKEN_ID, PUBLISHED, SIZES, Size
from phi3v.data.collator import Collator, common_prefix
from phi3v.data.encoding import IGNORE_INDEX, Example
from phi3v.model.crops import crop_grid
from phi3v.model.loading import choose_attention
from phi3v.training.operations import count_adapters, needed_operations
from phi3v.training.parts import Plan

Groups = list[list[Example]]
_PACKS = 4
_TOKENS_BEFORE = 8


def make_samples(row: Row, vocabulary: int) -> list[Groups]:
    """Make the samples of a row's batches, which are taken in turn."""
    rest = {"num_crops": row.num_crops, "vocabulary": vocabulary}
    kind, _, number = row.batch.partition("-")
    if kind == "pack":
        return make_packs(int(number), _PACKS, **rest)
    return [make_groups(row.batch, **rest)]


def needed(row: Row, model: Any, groups: Groups) -> float:
    """Count the operations that a step cannot do without; a shared beginning counts once."""
    units: list[tuple[int, int, int, int]] = []
    for group in groups:
        prefix = common_prefix(group, IMAGE_TOKEN_ID) if len(group) > 1 else 0
        own = [len(example["input_ids"]) - prefix for example in group]
        squares = prefix**2 + sum((prefix + length) ** 2 - prefix**2 for length in own)
        pictured = group[:1] if prefix else group
        grids = [crop_grid(*size, 336) for one in pictured for size in one["image_sizes"]]
        crops = sum(grid.rows * grid.columns + 1 for grid in grids)
        labels = sum(int((one["labels"] != IGNORE_INDEX).sum()) for one in group)
        units.append((prefix + sum(own), crops, labels, squares))
    lengths, crop_counts, label_counts, square_counts = np.array(units, dtype=float).T
    plan = Plan(
        language="LoRA" if row.method == "lora" else "full",
        vision="full" if row.train_vision else "frozen",
        projection="full",
    )
    operations = needed_operations(
        model.config,
        plan,
        lengths=lengths,
        crops=crop_counts,
        labels=label_counts,
        squares=square_counts,
        adapters=count_adapters(model),
    )
    return float(operations.sum())


def executed_over_needed(row: Row, model: Any, size: Size, groups: Groups) -> float:
    """Count on the meta device what the step executes, over what it needs."""
    step = count_step(
        row.arm,
        row.method,
        replace(size, lora_rank=row.rank),
        groups,
        train_vision=row.train_vision,
    )
    return step["flops"] / needed(row, model, groups)


def measure_step(
    row: Row, size: Size, device: torch.device, *, steps: int, warmup: int
) -> dict[str, Any]:
    """Warm up, then measure steps of a row.

    Returns:
        ``seconds`` of every step, ``samples`` and ``tokens`` a second, needed ``flops`` a second,
        ``executed_over_needed``, ``peak_gb``, and ``loss`` and ``grad_norm`` of the first step.
    """
    model = make_trained(row, size, device)
    optimizer = make_optimizer(row, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    samples = make_samples(row, model.config.vocab_size)
    batches = [pinned(prepare(row.arm, groups, row.num_crops), device) for groups in samples]
    first: list[Tensor] = []

    def step(batch: dict[str, Any]) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(row.arm, model, to_device(batch, device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not first:
            first.extend((loss.detach(), norm.detach()))

    def calls(count: int) -> list[Callable[[], None]]:
        return [partial(step, batches[at % len(batches)]) for at in range(count)]

    forget_peak_of(device)
    time_calls(calls(max(warmup, 1)), device)
    seconds = time_calls(calls(steps), device)
    turns = [samples[at % len(samples)] for at in range(steps)]
    examples = [one for groups in turns for group in groups for one in group]
    operations = [needed(row, model, groups) for groups in samples]
    total = sum(seconds)
    return {
        "row": row.name,
        "seconds": seconds,
        "samples": len(examples) / total,
        "tokens": sum(len(one["input_ids"]) for one in examples) / total,
        "flops": sum(operations[at % len(operations)] for at in range(steps)) / total,
        "executed_over_needed": executed_over_needed(row, model, size, samples[0]),
        "peak_gb": peak_gb(device),
        "loss": first[0].item(),
        "grad_norm": first[1].item(),
    }


@torch.no_grad()
def measure_answers(
    row: Answers, size: Size, device: torch.device, *, tokens: int
) -> dict[str, Any]:
    """Write answers twice, short ones and long ones; what lies between is time a token.

    Returns:
        ``tokens`` a second of all answers together, None where they took too short a time to tell;
        ``first`` seconds until the first ones.
    """
    model = make_base(Row(row.name, "lora", ""), size, device).eval()
    model.set_attn_implementation(choose_attention(torch.bfloat16))
    # No token ends an answer.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    shape = {"num_crops": row.num_crops, "vocabulary": model.config.vocab_size}
    prompts = [sample([(1344, 1008)], 40, seed=number, **shape) for number in range(row.rows)]
    batch = Collator(0, IMAGE_TOKEN_ID)(prompts)
    # All prompts are of one length.
    mask = torch.ones_like(batch["input_ids"])
    names = ("input_ids", "pixel_values")
    inputs = to_device({name: batch[name] for name in names} | {"attention_mask": mask}, device)
    inputs["image_sizes"] = torch.tensor(batch["image_sizes"])

    def write(count: int) -> None:
        written = model.generate(
            **inputs,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            cache_implementation="static" if row.cache == "static" else None,
        )
        assert written.shape[1] == inputs["input_ids"].shape[1] + count

    forget_peak_of(device)
    # The static cache is as long as the longest answer: both lengths are warmed up.
    few, many = _TOKENS_BEFORE, _TOKENS_BEFORE + tokens
    time_calls([lambda: write(few), lambda: write(many)], device)
    short, long = time_calls([lambda: write(few), lambda: write(many)], device)
    first = time_calls([lambda: write(1)], device)[0]
    return {
        "row": row.name,
        "tokens": row.rows * tokens / (long - short) if long > 1.1 * short else None,
        "first": first,
        "peak_gb": peak_gb(device),
    }


def main(argv: list[str]) -> int:
    """Measure and print; a row that does not fit says so in place of numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=[row.name for row in (*STEPS, *ANSWERS)])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--device", default="cuda", help="cpu with a small --model: to try it out")
    parser.add_argument("--model", choices=("published", *SIZES), default="published")
    parser.add_argument("--num_crops", type=int, help="instead of the row's own")
    parser.add_argument("--pack_tokens", type=int, help="instead of the row's own")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    size = PUBLISHED if options.model == "published" else SIZES[options.model]
    row: Any = next(one for one in (*STEPS, *ANSWERS) if one.name == options.row)
    if options.num_crops:
        row = replace(row, num_crops=options.num_crops)
    if options.pack_tokens and isinstance(row, Row) and row.batch.startswith("pack-"):
        row = replace(row, batch=f"pack-{options.pack_tokens}")
    try:
        if isinstance(row, Row):
            counts = {"steps": options.steps, "warmup": options.warmup}
            result = measure_step(row, size, device, **counts)
        else:
            result = measure_answers(row, size, device, tokens=options.tokens)
    except torch.OutOfMemoryError:
        result = {"row": row.name, "out_of_memory": True}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
