"""Snapshots of adapter runs: what a checkpoint holds, copied off the run, which goes on meanwhile.

Everything that a step changes is copied into memory of the host, pinned where it comes from a GPU;
so a snapshot costs the bytes of its checkpoint, and the step no longer than the copies are queued.
"""

import copy
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from transformers import Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME

from phi3v.model.processing import Phi3VProcessor
from phi3v.training.adapters import AdapterCopy
from phi3v.training.checkpoints import STATE_FILE
from phi3v.training.facts import FACTS_FILE


def copy_to_host(value: Any) -> Any:
    """Copy tensors, also those in lists and dictionaries; copies from a GPU are only queued."""
    if isinstance(value, torch.Tensor):
        queued = value.is_cuda
        host = torch.empty_like(value, device="cpu", pin_memory=queued, requires_grad=False)
        return host.copy_(value.detach(), non_blocking=queued)
    if isinstance(value, Mapping):
        return {name: copy_to_host(one) for name, one in value.items()}
    if isinstance(value, list):
        return [copy_to_host(one) for one in value]
    return copy.deepcopy(value)


@dataclass
class Snapshot:
    """The contents of a checkpoint.

    Attributes:
        adapter: Adapters and fully trained parts.
        processor: One that nobody else uses: a tokenizer must not be saved while it encodes.
        states: What the library resumes from, by names of files.
        trainer_state: Step, log and best checkpoint.
        facts: What the run is made of.
        copied: Passed by the GPU after the last copy; None on a CPU.
    """

    adapter: AdapterCopy
    processor: Phi3VProcessor
    states: dict[str, Any]
    trainer_state: TrainerState
    facts: dict[str, Any]
    copied: torch.cuda.Event | None

    def write(self, folder: Path) -> None:
        """Write the files of a checkpoint, those that the library writes included."""
        if self.copied is not None:
            self.copied.synchronize()
        folder.mkdir(parents=True)
        self.adapter.save(folder)
        self.processor.save_pretrained(str(folder))
        for name, state in self.states.items():
            torch.save(state, folder / name)
        self.trainer_state.save_to_json(str(folder / STATE_FILE))
        text = json.dumps(self.facts, indent=2) + "\n"
        (folder / FACTS_FILE).write_text(text, encoding="utf-8")


def take_snapshot(
    trainer: Trainer, processor: Phi3VProcessor, facts: dict[str, Any]
) -> Snapshot | None:
    """Copy what a checkpoint of this step holds; all processes must call this.

    Args:
        trainer: Of a run with adapters whose whole state every process holds.
        processor: Of its checkpoints; see ``Snapshot``.
        facts: What the run is made of.

    Returns:
        The snapshot on the process that writes for all, None on the others.
    """
    states = {} if trainer.args.save_only_model else _random_states(trainer)
    if not trainer.args.should_save:
        return None
    if not trainer.args.save_only_model:
        assert trainer.optimizer is not None and trainer.lr_scheduler is not None
        states[OPTIMIZER_NAME] = copy_to_host(trainer.optimizer.state_dict())
        states[SCHEDULER_NAME] = copy_to_host(trainer.lr_scheduler.state_dict())
        if trainer.accelerator.scaler is not None:
            states[SCALER_NAME] = copy_to_host(trainer.accelerator.scaler.state_dict())
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    adapter = AdapterCopy(model, copy_to_host)
    copied = None
    if trainer.args.device.type == "cuda":
        copied = torch.cuda.Event()
        copied.record()
    state = copy.deepcopy(trainer.state)
    return Snapshot(adapter, processor, states, state, facts, copied)


def _random_states(trainer: Trainer) -> dict[str, Any]:
    """Collect the random states of all processes, by the names that the library reads."""
    several = trainer.args.world_size > 1
    own: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        cuda = torch.cuda.random
        own["cuda"] = cuda.get_rng_state_all() if several else cuda.get_rng_state()
    if not several:
        return {"rng_state.pth": own}
    found = [own] * trainer.args.world_size
    distributed.all_gather_object(found, own)
    return {f"rng_state_{rank}.pth": state for rank, state in enumerate(found)}
