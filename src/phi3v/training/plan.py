"""The command ``phi3v plan``: what a run needs, whether it fits, and what to choose."""

import argparse
import json
import logging
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from phi3v.data.dataset import SupervisedDataset
from phi3v.model.loading import load_config, load_processor
from phi3v.training.activations import REGIMES, USABLE
from phi3v.training.batching import (
    Batch,
    largest_batch,
    measure_rows,
    pack_training_set,
    settle_batch_size,
)
from phi3v.training.checks import check_arguments
from phi3v.training.datasets import build_datasets
from phi3v.training.estimate import make_model, memory_of, trains
from phi3v.training.feature_cost import cost_of_cache, num_epochs
from phi3v.training.features import find_vision
from phi3v.training.flags import RunArguments, parse_arguments, yaml_flags
from phi3v.training.operations import OF_ADAPTER, count_adapters, needed_operations
from phi3v.training.parts import TOWER, format_table, plan_parts, table_of_parts
from phi3v.training.plan_table import format_plan
from phi3v.training.strategies import STRATEGIES, strategy_of

# Memory in units of 1e9 bytes, and dense bfloat16 TFLOP/s as the makers state them.
GPUS = {
    "H200": (141, 989.0),
    "H100": (80, 989.0),
    "A100": (80, 312.0),
    "L40S": (48, 362.0),
    "RTX4090": (24, 165.0),
    "L4": (24, 121.0),
}


def build_parser() -> argparse.ArgumentParser:
    """Describe the flags beside those of training."""
    parser = argparse.ArgumentParser(
        prog="phi3v plan",
        description="Say what a run will need, before weights are loaded. Takes run.yaml and the "
        "flags of phi3v train, and these:",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gpu", choices=sorted(GPUS), default="A100", help="kind of GPU (%(default)s)")
    add("--gpu_memory", help="memory of a GPU, such as 24GB; default: that of its kind")
    add("--num_gpus", type=int, default=1, help="GPUs in all (%(default)s)")
    add("--strategy", choices=sorted(STRATEGIES), help="default: as --deepspeed says, else ddp")
    add("--peak_tflops", type=float, help="of a GPU; default: that of its kind")
    add("--mfu", type=float, default=0.4, help="share of it that is used (%(default)s)")
    add("--json", metavar="OUT", help="write all numbers")
    return parser


def parse_gigabytes(text: str) -> float:
    """Read an amount of memory, such as 24GB, 24 or 40GiB; bytes.

    Raises:
        ValueError: It is none.
    """
    found = re.fullmatch(r"([0-9.]+)\s*(gb|gib)?", text.strip(), re.IGNORECASE)
    if found is None or not 0 < float(found[1]) < 1e5:
        raise ValueError(f"--gpu_memory is {text!r}, expected an amount such as 24GB")
    return float(found[1]) * (1 << 30 if (found[2] or "").lower() == "gib" else 1e9)


def read_words(argv: list[str]) -> tuple[argparse.Namespace, RunArguments]:
    """Split the words into the command's own and those of training.

    DeepSpeed is not started: its file only says how the run is spread.
    """
    words = list(argv)
    if words and words[0].endswith((".yaml", ".yml")):
        words = yaml_flags(Path(words[0])) + words[1:]
    parser = build_parser()
    parser.add_argument("--deepspeed", help=argparse.SUPPRESS)
    own, rest = parser.parse_known_args(words)
    for name in ("num_gpus", "mfu", "peak_tflops"):
        value = getattr(own, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}, expected more than 0")
    if own.mfu > 1:
        raise ValueError(f"--mfu is {own.mfu:g}, expected a share of 1, such as 0.4")
    arguments, messages = parse_arguments(rest, prog="phi3v plan")
    for message in messages:
        if "no GPU found" not in message:
            logging.warning(message)
    own.strategy = own.strategy or strategy_of(own.deepspeed)
    return own, arguments


def measure_data(
    arguments: RunArguments, config: Any, num_gpus: int = 1
) -> tuple[Batch, dict[str, Any]]:
    """Find the largest batch and the sums of an epoch, from the records' real lengths.

    Args:
        arguments: Those of the run.
        config: Sizes of the model.
        num_gpus: Processes that packs are spread over.

    Raises:
        ValueError: The records are streamed, so that nobody knows their lengths.
    """
    data, training = arguments.data, arguments.training
    if data.streaming:
        raise ValueError("--streaming: lengths are not known beforehand; plan without it")
    processor = load_processor(arguments.model.model_id, num_crops=data.num_crops)
    # Lengths are needed, those of the validation set are not.
    dataset, _ = build_datasets(replace(data, check_data=True, eval_data_path=None), processor)
    assert isinstance(dataset, SupervisedDataset)
    assert dataset.num_crops is not None and dataset.num_labels is not None
    lengths = np.array(dataset.lengths(), dtype=np.int64)
    packs, rows, computed = None, None, lengths
    if training.packing:
        settle_batch_size(arguments)
        packs = pack_training_set(dataset, config, arguments, num_ranks=num_gpus)
        # What is shared is computed once.
        computed, costs = packs.units.tokens, packs.costs
        rows = measure_rows(len(packs), computed, training)
    else:
        costs = needed_operations(
            config,
            plan_parts(arguments.model, arguments.lora),
            lengths=lengths,
            crops=dataset.num_crops,
            labels=dataset.num_labels,
        )
    size = training.per_device_train_batch_size
    num_batches = -(-(len(lengths) if packs is None else len(packs)) // size)
    batch = largest_batch(dataset, packs, training)
    return batch, {
        "samples": len(lengths),
        "tokens": int(lengths.sum()),
        "shared_tokens": int(lengths.sum() - computed.sum()),
        "batches": num_batches,
        "rows": rows,
        "labels": int(dataset.num_labels.sum()),
        "distinct_crops": dataset.num_distinct_crops,
        "operations": float(costs.sum()),
    }


def make_plan(own: argparse.Namespace, arguments: RunArguments) -> dict[str, Any]:
    """Work everything out.

    Returns:
        ``parts``, ``batch``, ``memory`` (bytes by strategy, regime and kind), ``room``, ``fits``,
        ``proposal``, ``epoch``, ``cache_vision`` (None where the tower trains); ready for JSON.
    """
    for hint in check_arguments(*arguments[:4]):
        logging.warning(hint)
    config = load_config(arguments.model.model_id)
    batch, epoch = measure_data(arguments, config, own.num_gpus)
    model = make_model(arguments, config)
    memory, peak = GPUS[own.gpu]
    total = parse_gigabytes(own.gpu_memory) if own.gpu_memory else memory * 1e9
    room = USABLE * total
    shown = {own.strategy: STRATEGIES[own.strategy]} | (STRATEGIES if own.num_gpus > 1 else {})
    shown |= {"offload": STRATEGIES["offload"]}
    sizes = {
        name: {
            regime: memory_of(
                model,
                config,
                arguments,
                batch,
                regime=regime,
                strategy=strategy,
                num_gpus=own.num_gpus,
            )
            for regime in REGIMES
        }
        for name, strategy in shown.items()
    }
    fits = {
        name: next((regime for regime in REGIMES if one[regime].total <= room), None)
        for name, one in sizes.items()
    }
    passed = epoch["tokens"] - epoch["shared_tokens"]
    of_tokens, of_labels = count_adapters(model)
    adapters = OF_ADAPTER * (of_tokens * passed + of_labels * epoch["labels"])
    operations = epoch["operations"] + adapters
    rate = own.mfu * (own.peak_tflops or peak) * 1e12 * own.num_gpus
    epoch |= {"operations": operations, "seconds": operations / rate, "mfu": own.mfu}
    rows = table_of_parts(model, arguments.training, arguments.lora)
    cache = None
    if epoch["distinct_crops"] and not trains(model, TOWER):
        cost = cost_of_cache(
            find_vision(model),
            epoch["distinct_crops"],
            rate=rate,
            epochs=num_epochs(arguments.training, epoch["batches"], own.num_gpus),
        )
        cache = asdict(cost) | {"reading": cost.reading, "verdict": cost.verdict}
    return {
        "gpu": {"name": own.gpu, "memory": total, "room": room, "count": own.num_gpus},
        "strategy": own.strategy,
        "parts": [asdict(row) for row in rows],
        "table": format_table(rows),
        "batch": asdict(batch),
        "memory": {
            name: {r: asdict(m) | {"total": m.total} for r, m in one.items()}
            for name, one in sizes.items()
        },
        "fits": fits,
        "proposal": propose(own.strategy, fits, sizes, batch, room),
        "epoch": epoch,
        "cache_vision": cache,
    }


def propose(
    strategy: str, fits: dict[str, Any], sizes: dict[str, Any], batch: Batch, room: float
) -> dict[str, Any]:
    """Choose strategy and regime that fit, and the tokens that would fill the GPU then."""
    ways = [strategy, *(name for name in fits if name != strategy)]
    way = next((name for name in ways if fits[name]), None)
    if way is None:
        return {"strategy": None, "regime": None, "tokens": 0}
    memory = sizes[way][fits[way]]
    static = memory.total - max(memory.activations + memory.logits, memory.vision)
    per_token = memory.activations / batch.tokens
    tokens = int((room - static - memory.logits) / per_token) // 256 * 256
    return {"strategy": way, "regime": fits[way], "tokens": tokens}


def main(argv: list[str]) -> int:
    """Run ``phi3v plan``; 1 where the run as asked for does not fit, else 0."""
    if not argv or "-h" in argv or "--help" in argv:
        build_parser().print_help()
        return 0
    own, arguments = read_words(argv)
    plan = make_plan(own, arguments)
    print(format_plan(plan))
    if own.json:
        del plan["table"]
        Path(own.json).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    return int(plan["fits"][own.strategy] is None)
