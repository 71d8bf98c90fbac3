"""Runs a list of trainings in one process group; started by the tests, bare or by a launcher.

    python -m tests.training.distributed_worker JOBS.json RESULTS.json

JOBS.json holds a list of {"name": ..., "argv": [...]}; the first rank writes per name the losses,
the learning rates of the optimizer groups and the kinds of samples that every rank saw.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from phi3v.data.processes import disconnect, rank
from phi3v.model.clip import CLIPVisionTower
from phi3v.training.flags import parse_arguments
from phi3v.training.train import run

# How many the tower of this process has encoded.
crops = torch.zeros(1, dtype=torch.int64)


def count_crops(module: torch.nn.Module, _: Any, output: Any) -> None:
    if isinstance(module, CLIPVisionTower):
        crops[0] += len(output)


def run_job(argv: list[str]) -> dict[str, Any]:
    unset_hf_deepspeed_config()
    arguments, messages = parse_arguments(argv)
    crops.zero_()
    trainer = run(arguments)
    logs = trainer.state.log_history
    optimizer: Any = trainer.optimizer
    return {
        "losses": [entry["loss"] for entry in logs if "loss" in entry],
        "eval_losses": [entry["eval_loss"] for entry in logs if "eval_loss" in entry],
        "skipped": [entry["skipped_records"] for entry in logs if "skipped_records" in entry],
        "rates": sorted({group["lr"] for group in optimizer.param_groups}),
        "messages": messages,
        "crops": int(trainer.accelerator.reduce(crops)[0]),
        "tokens": trainer.tokens.read(),
        "world_size": trainer.args.world_size,
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.nn.modules.module.register_module_forward_hook(count_crops)
    jobs, target = sys.argv[1:3]
    results = {}
    for job in json.loads(Path(jobs).read_text(encoding="utf-8")):
        results[job["name"]] = run_job(job["argv"])
        if rank() == 0:
            Path(target).write_text(json.dumps(results), encoding="utf-8")
    disconnect()


if __name__ == "__main__":
    main()
