"""How a run is saved: checkpoints and the result appear whole, in our form."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from phi3v.model.durable import sync_folder, write_text
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.saving import save_checkpoint
from phi3v.training.adapters import is_wrapped, save_adapter
from phi3v.training.background import BackgroundWriter
from phi3v.training.checkpoints import (
    STATE_FILE,
    UNFINISHED,
    explained,
    finish_result,
    finish_writing,
    result_aside,
    start_result,
    start_writing,
)
from phi3v.training.facts import FACTS_FILE
from phi3v.training.sharding import frozen_copies
from phi3v.training.snapshots import take_snapshot


class SavingTrainer(Trainer):
    """The library's Trainer, writing aside and renaming.

    Args:
        base_folder: Folder or hub id of the base model; its code files are carried along.
        processor: Written beside every checkpoint.
        facts: What the run is made of; written into every checkpoint.
        **kwargs: Those of ``transformers.Trainer``.

    Attributes:
        writer: Writes checkpoints while steps go on.
    """

    def __init__(
        self, *, base_folder: str, processor: Phi3VProcessor, facts: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.base_folder = base_folder
        self.processor = processor
        self.facts = facts
        self.writer = BackgroundWriter()
        self._result_dtype: torch.dtype | None = None
        self._is_saving = False
        self._own_processor: Phi3VProcessor | None = None

    @property
    def saves_in_background(self) -> bool:
        """Whether checkpoints are small, those of adapters, and the first process holds them."""
        args = self.args
        return (
            is_wrapped(self.accelerator.unwrap_model(self.model))
            and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
            and not (args.save_on_each_node or args.push_to_hub)
            and args.device.type in ("cpu", "cuda")
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the library does; after an error, too, a checkpoint under way is finished."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.writer.close()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch, unless a checkpoint could not be written."""
        self.writer.check()
        return super().training_step(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._wait_before_forks()
        super()._run_epoch(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as the library does."""
        self._wait_before_forks()
        return super().evaluation_loop(*args, **kwargs)

    def _wait_before_forks(self) -> None:
        # A process that reads data would inherit the locks of a thread in the midst of its work.
        if self.args.dataloader_num_workers > 0:
            self.writer.wait()

    def _finalize_training(self, *args: Any) -> Any:
        """Let all processes find the last checkpoint in its place; one may load the best."""
        self.writer.wait()
        self.accelerator.wait_for_everyone()
        return super()._finalize_training(*args)

    def save_result(self, dtype: torch.dtype) -> None:
        """Write the output folder; a whole model in the type that it ran in, as the published ones.

        Checkpoints keep the float32 weights that training goes on from.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not is_wrapped(model):
            for parameter in model.parameters():
                if not hasattr(parameter, "ds_id"):
                    parameter.data = parameter.data.to(dtype)
            self._result_dtype = dtype
        folder = Path(str(self.args.output_dir))
        aside = result_aside(folder)
        with explained(folder, aside):
            if self.args.should_save:
                start_result(folder)
            self.accelerator.wait_for_everyone()
            self.save_model(str(aside))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(aside / STATE_FILE))
                finish_result(folder)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint aside as the library does; it gets its name when it is whole."""
        if self.saves_in_background:
            self._save_in_background()
            return
        folder, step = Path(super()._get_output_dir(trial)), self.state.global_step
        aside = folder / UNFINISHED / f"checkpoint-{step}"
        with explained(folder, aside):
            if self.args.should_save:
                start_writing(folder, step)
            self.accelerator.wait_for_everyone()
            self._is_saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_saving = False
            if self.state.best_model_checkpoint == str(aside):
                self.state.best_model_checkpoint = str(folder / aside.name)
                if self.args.should_save:
                    self.state.save_to_json(str(aside / STATE_FILE))
            if self.args.should_save:
                write_text(aside / FACTS_FILE, json.dumps(self.facts, indent=2) + "\n")
            if self.args.local_process_index == 0:
                # Each machine brings what its processes wrote onto the disk.
                sync_folder(aside)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
                finish_writing(folder, step, limit=limit, best=best)
            self.accelerator.wait_for_everyone()

    def _save_in_background(self) -> None:
        """Take a snapshot, once the one before is written, and leave the rest to the thread."""
        self.writer.wait()
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        self.store_flos()
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{step}")
        kept: Any = self.state.stateful_callbacks
        for one in [*self.callback_handler.callbacks, self.control]:
            if isinstance(one, ExportableState):
                kept[type(one).__name__] = one.state()
        if self._own_processor is None:
            self._own_processor = copy.deepcopy(self.processor)
        snapshot = take_snapshot(self, self._own_processor, self.facts)
        if snapshot is None:
            return
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint

        def write() -> None:
            aside = folder / UNFINISHED / f"checkpoint-{step}"
            with explained(folder, aside):
                start_writing(folder, step)
                snapshot.write(aside)
                finish_writing(folder, step, limit=limit, best=best)

        self.writer.start(write)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write the adapter, or the whole model in the published form; on the first process.

        All processes come here: the sharded rest of an adapter is gathered first.
        """
        folder = output_dir or self.args.output_dir
        assert folder is not None
        model: Any = self.accelerator.unwrap_model(self.model)
        copies = frozen_copies(model)
        if not self.args.should_save:
            return
        os.makedirs(folder, exist_ok=True)
        if is_wrapped(model):
            if state_dict is not None:
                state_dict = copies | state_dict
            save_adapter(model, folder, state_dict=state_dict)
            self.processor.save_pretrained(folder)
        else:
            if state_dict is not None and self._result_dtype is not None:
                # FSDP gathers from what it keeps itself, not from the parameters cast above.
                state_dict = {name: v.to(self._result_dtype) for name, v in state_dict.items()}
            save_checkpoint(
                model,
                self.processor,
                folder,
                base=self.base_folder,
                state_dict=state_dict,
            )
