"""The library's Trainer with our parameter groups, counters and form of checkpoints."""

import os
from typing import Any

import torch
from peft import PeftModel
from transformers import ProgressCallback, Trainer

from phi3v.model.processing import Phi3VProcessor
from phi3v.model.saving import save_checkpoint
from phi3v.training.adapters import save_adapter
from phi3v.training.arguments import LoraArguments, Phi3VTrainingArguments
from phi3v.training.callbacks import GradientCheck, ProgressBar, TokenCounter
from phi3v.training.optimizer import parameter_groups


class Phi3VTrainer(Trainer):
    """Trains a bare or wrapped model.

    Args:
        base_folder: Folder or hub id of the base model; its code files are carried along.
        lora: Arguments of the adapters.
        processor: Written beside every checkpoint. The library does not get to see it: it would
            rewrite the stop ids of the model to those of the tokenizer.
        **kwargs: Those of ``transformers.Trainer``.
    """

    args: Phi3VTrainingArguments

    def __init__(
        self, *, base_folder: str, lora: LoraArguments, processor: Phi3VProcessor, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.processor = processor
        self.base_folder = base_folder
        self.lora = lora
        self.tokens = TokenCounter()
        self.add_callback(GradientCheck())
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer over groups by part; see ``parameter_groups``."""
        if self.optimizer is None:
            model = model or self.model
            assert model is not None
            groups = parameter_groups(
                model, self.args, loraplus_lr_ratio=self.lora.loraplus_lr_ratio
            )
            for group in groups:
                del group["names"]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any
    ) -> torch.Tensor:
        """Count the batch, then train on it as the library does."""
        self.tokens.add(inputs)
        return super().training_step(model, inputs, *args)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Add the tokens per second of this process to each line of the training log."""
        if "loss" in logs:
            logs["tokens_per_second"] = round(self.tokens.rate(), 1)
        super().log(logs, *args)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write the adapter, or the whole model in the published form; called on the first rank."""
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if not self.args.should_save:
            return
        os.makedirs(folder, exist_ok=True)
        model: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            save_adapter(model, folder, state_dict=state_dict)
            self.processor.save_pretrained(folder)
        else:
            save_checkpoint(
                model,
                self.processor,
                folder,
                base=self.base_folder,
                state_dict=state_dict,
            )
