"""How time and memory grow: with length, images, vocabulary and samples; prints one JSON object.

python -m benchmarks.scaling ours --model fm-tiny
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.arms import ARMS, build, make_optimizer, prepare, step_of
from benchmarks.batches import crop_count, draw_shapes, make_groups, token_count
from benchmarks.models import PUBLISHED, SIZES, model_config
from benchmarks.step import forget_peak, memory_mb
from phi3v.data.balancing import balanced_order
from phi3v.data.packing import plan_packs
from phi3v.training.operations import needed_operations
from phi3v.training.parts import Plan

_AXES = {
    "length": ("text-{}", (1024, 2048, 4096, 8192)),
    "images": ("images-{}", (1, 2, 4, 8)),
    "vocabulary": ("text-2048", (512, 4096, 16384, 32064)),
}


def grow(arm: str, axis: str, model_name: str, points: tuple[int, ...]) -> list[dict[str, float]]:
    """Make LoRA steps of growing size.

    Returns:
        For every point ``at``, CPU seconds, and the peak of the memory over that before the step
        (1e6 bytes).
    """
    results = []
    for point in points:
        vocabulary = point if axis == "vocabulary" else None
        model, config = build(arm, "lora", SIZES[model_name], vocabulary)
        kind = _AXES[axis][0].format(point)
        groups = make_groups(kind, num_crops=1, vocabulary=config.vocab_size)
        batch = prepare(arm, groups, 1)
        step = step_of(arm, model, make_optimizer(arm, model))
        # The first step of a process loads code.
        if not results:
            step(batch)
        forget_peak()
        before, start = memory_mb("VmRSS"), time.process_time()
        step(batch)
        seconds = time.process_time() - start
        peak = memory_mb("VmHWM") - before
        results.append({"at": point, "cpu_s": seconds, "peak_mb": peak})
    return results


def most_filled(lengths: np.ndarray, pack_tokens: int) -> float:
    """Bound the share of the packs that any plan can fill.

    A dual feasible function gives each unit a weight, of which no pack holds more than 1; the sum
    of the weights is then the least number of packs.

    Source:
        Burdet and Johnson, 1977, as f_BJ,1 in Clautiaux, Alves and Valerio de Carvalho, "A survey
        of dual-feasible and superadditive functions", 2010.
    """
    shares = lengths / pack_tokens
    fewest = shares.sum()
    for stretch in np.arange(1.01, 33, 0.01):
        whole, rest = np.floor(stretch), stretch % 1
        # A little less, so that rounding never adds to a weight.
        stretched = stretch * shares - 1e-9
        over = np.maximum(stretched % 1 - rest, 0) / (1 - rest)
        fewest = max(fewest, (np.floor(stretched) + over).sum() / whole)
    return float(shares.sum() / fewest)


def plan_samples(count: int, num_ranks: int = 8, pack_tokens: int = 16384) -> dict[str, float]:
    """Plan the packs of many samples.

    Returns:
        CPU seconds, peak of the memory over that before (1e6 bytes), share of the packs that is
        filled, the bound of that share, and by how much the slowest of the ranks exceeds the mean,
        over all steps: in operations of LoRA with a frozen tower.
    """
    few = draw_shapes(4096)
    sizes = np.array([(token_count(*one, 16), crop_count(one[0], 16), one[1] // 2) for one in few])
    lengths, crops, labels = sizes[np.random.default_rng(0).integers(0, len(few), count)].T
    parts = Plan(language="LoRA", vision="frozen", projection="full")
    forget_peak()
    before, start = memory_mb("VmRSS"), time.process_time()
    packs = plan_packs(lengths, pack_tokens, seed=0, num_ranks=num_ranks)
    config = model_config(PUBLISHED)
    costs = packs.sums(
        needed_operations(config, parts, lengths=lengths, crops=crops, labels=labels)
    )
    order = balanced_order(costs, num_ranks, seed=0)
    seconds = time.process_time() - start
    steps = costs[order].reshape(-1, num_ranks)
    return {
        "at": count,
        "cpu_s": seconds,
        "peak_mb": memory_mb("VmHWM") - before,
        "filled": float(lengths.sum() / (len(packs) * pack_tokens)),
        "most_filled": most_filled(lengths, pack_tokens),
        "imbalance": float(steps.max(1).sum() / steps.mean(1).sum() - 1),
    }


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm", choices=(*ARMS, "packing"))
    parser.add_argument("--model", choices=SIZES, default="fm-tiny")
    parser.add_argument("--points", type=int, default=4, help="of every axis, at most 4")
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--pack_tokens", type=int, default=16384)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result: Any
    if options.arm == "packing":
        result = [plan_samples(count, pack_tokens=options.pack_tokens) for count in options.samples]
    else:
        result = {
            axis: grow(options.arm, axis, options.model, points[: options.points])
            for axis, (_, points) in _AXES.items()
        }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
