"""Trains in a process group; the loss of step 2 is NaN on the second process only.

    python -m tests.training.spoiling_worker JOBS.json

JOBS.json holds a list of {"name": ..., "argv": [...]}; every process writes what became of its run
to NAME.RANK beside the file. The last one is started as the command, whose status is the process's.
"""

import json
import sys
from pathlib import Path
from typing import Any

from torch import distributed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from phi3v.data.processes import rank
from phi3v.training import train
from phi3v.training.flags import parse_arguments
from phi3v.training.guard import NotFiniteError
from phi3v.training.trainer import Phi3VTrainer

compute = Phi3VTrainer.compute_loss


def spoil(self: Phi3VTrainer, *args: Any, **kwargs: Any) -> Any:
    loss = compute(self, *args, **kwargs)
    return loss * float("nan") if rank() == 1 and self.state.global_step == 1 else loss


def run_job(argv: list[str]) -> dict[str, Any]:
    unset_hf_deepspeed_config()
    arguments, _ = parse_arguments(argv)
    try:
        trainer = train.run(arguments)
    except NotFiniteError as error:
        return {"stopped": str(error)}
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    weights = sum(one.double().abs().sum().item() for one in model.parameters())
    return {
        "skipped": trainer.guard.num_skipped,
        "logged": [line.get("skipped_steps") for line in trainer.state.log_history],
        "weights": weights,
    }


def main() -> int:
    Phi3VTrainer.compute_loss = spoil  # type: ignore[method-assign]  # only here
    listed = Path(sys.argv[1])
    *jobs, last = json.loads(listed.read_text(encoding="utf-8"))
    for job in jobs:
        result = listed.with_name(f"{job['name']}.{rank()}")
        result.write_text(json.dumps(run_job(job["argv"])), encoding="utf-8")
        distributed.barrier()
    unset_hf_deepspeed_config()
    return train.main(last["argv"])


if __name__ == "__main__":
    sys.exit(main())
