"""The library's Trainer with our parameter groups, counters and form of checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from phi3v.data.answered import AnswerScorer
from phi3v.data.balancing import BalancedSampler
from phi3v.data.collator import Collator
from phi3v.data.packing import PackedDataset
from phi3v.data.streaming import StreamedExamples
from phi3v.model.processing import Phi3VProcessor
from phi3v.training.answers import show_answers
from phi3v.training.arguments import LoraArguments, Phi3VTrainingArguments
from phi3v.training.callbacks import GradientCheck, ProgressBar, SkipCounter, TokenCounter
from phi3v.training.features import FeatureWriter, storing
from phi3v.training.guard import CurveWatch, NumericsGuard
from phi3v.training.interruption import StopRequest, StopWhenAsked, shelter_workers
from phi3v.training.optimizer import make_optimizer
from phi3v.training.saving import SavingTrainer
from phi3v.training.sharding import whole_model


class Phi3VTrainer(SavingTrainer):
    """Trains a bare or wrapped model.

    Args:
        base_folder: Folder or hub id of the base model; its code files are carried along.
        lora: Arguments of the adapters.
        processor: Written beside every checkpoint. The library does not get to see it: it would
            rewrite the stop ids of the model to those of the tokenizer.
        facts: What the run is made of; written into every checkpoint.
        skips: Counts what is skipped; None where a bad record is an error.
        score_answers: Scores generated answers at each evaluation; None for the loss alone.
        features: Stores what the tower makes of pictures; None without a cache.
        **kwargs: Those of ``transformers.Trainer``.
    """

    args: Phi3VTrainingArguments

    def __init__(
        self,
        *,
        base_folder: str,
        lora: LoraArguments,
        processor: Phi3VProcessor,
        facts: dict[str, Any],
        skips: SkipCounter | None = None,
        score_answers: AnswerScorer | None = None,
        features: FeatureWriter | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(base_folder=base_folder, processor=processor, facts=facts, **kwargs)
        self.lora = lora
        self.tokens = TokenCounter()
        self.features = features
        self.skips = skips
        self.score_answers = score_answers
        self.stop_request = StopRequest(listens=self.args.save_on_signal)
        self._stop = StopWhenAsked(self.stop_request)
        folder = Path(str(self.args.output_dir))
        self.guard = NumericsGuard(
            self.args.on_nonfinite,
            checks_gradient=not self.args.fp16,
            folder=folder,
            before_report=self.writer.wait,
        )
        self.add_callback(GradientCheck())
        self.add_callback(CurveWatch(folder))
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressBar())
        # The last to be asked: it may take back what the others want at the end of an epoch.
        self.add_callback(self._stop)

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal has stopped the run."""
        return self._stop.has_stopped

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer over groups by part; see ``make_optimizer``."""
        if self.optimizer is None:
            model = model or self.model
            assert model is not None
            ratio = self.lora.loraplus_lr_ratio
            self.optimizer = make_optimizer(model, self.args, loraplus_lr_ratio=ratio)
        return self.optimizer

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any
    ) -> torch.Tensor:
        """Count the batch, train on it as the library does, and note if the loss is finite."""
        self.tokens.add(inputs)
        if self.skips is not None:
            self.skips.take(inputs)
        records = inputs.pop("records", [])
        with storing(self.features, inputs):
            loss = super().training_step(model, inputs, *args)
        return self.guard.add_loss(self.state.global_step + 1, records, loss)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Look at the gradient before the weights change, as the library computes its norm here."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.guard.add_gradient(self.state.global_step + 1, norm):
            # Without gradients, the optimizer leaves weights and states as they are.
            model.zero_grad()
        return norm

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """Group by length without opening a picture: the library would load every example."""
        dataset: Any = train_dataset or self.train_dataset
        if isinstance(dataset, PackedDataset):
            ranks, size = self.args.world_size, self.args.train_batch_size
            return BalancedSampler(dataset.costs, ranks, self.args.seed, batch_size=size)
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(size, lengths=dataset.lengths())

    def get_train_dataloader(self) -> DataLoader:
        """Make the loader; its processes leave signals to this one.

        A stream knows its process, so the library must not share it out.
        """
        dataset: Any = self.train_dataset
        if not isinstance(dataset, StreamedExamples):
            return shelter_workers(super().get_train_dataloader())
        args = self.args
        loader = DataLoader(
            dataset,
            args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            # The seeds of workers are drawn from here, not from the state that is kept and resumed.
            generator=torch.Generator(),
        )
        return shelter_workers(loader)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, unless something was not finite since the last look."""
        self.guard.look()
        super()._save_checkpoint(model, trial)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing where the checkpoint is of the last step: the library would add one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps

    def _finalize_training(self, *args: Any) -> Any:
        """Skip after a signal what only a finished run does: it takes the best, and time."""
        self.guard.look()
        best = self.state.best_model_checkpoint
        if self.is_interrupted:
            self.state.best_model_checkpoint = None
        try:
            return super()._finalize_training(*args)
        finally:
            self.state.best_model_checkpoint = best

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batch validation samples as padded rows: a sample that only fills up is then one row."""
        collator = self.data_collator
        tokenizer = self.processor.tokenizer
        self.data_collator = Collator(tokenizer.pad_token_id, self.processor.image_token_id)
        try:
            return shelter_workers(super().get_eval_dataloader(eval_dataset))
        finally:
            self.data_collator = collator

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all supervised tokens, whatever the batches are."""
        self._eval_sums = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(
            *args,
            metric_key_prefix=metric_key_prefix,
            **kwargs,
        )
        total, count = self.accelerator.reduce(self._eval_sums, reduction="sum").tolist()
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(count, 1)
        if self.score_answers is not None:
            scores = self._score(self.score_answers)
            output.metrics.update({f"{metric_key_prefix}_{name}": v for name, v in scores.items()})
        return output

    def _score(self, score_answers: AnswerScorer) -> dict[str, float]:
        """Let the model answer, all processes together; the first one shows a few answers."""
        with whole_model(self.model_wrapped), self.compute_loss_context_manager():
            scores, shown = score_answers(
                self.accelerator.unwrap_model(self.model), self.state.global_step
            )
        if self.is_world_process_zero():
            show_answers(self.state.global_step, scores, shown, self.callback_handler.callbacks)
        return scores

    @torch.no_grad()
    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Compute the loss of one batch, and add its sum and number of tokens to the total."""
        if self.skips is not None:
            self.skips.take(inputs)
        inputs.pop("records", None)
        with storing(self.features, inputs), self.compute_loss_context_manager():
            inputs = self._prepare_inputs(inputs)
            labels = self._without_repeats(inputs["labels"])
            total = model(**{**inputs, "labels": labels}, num_items_in_batch=1).loss
        count = labels[:, 1:].ne(-100).sum()
        self._eval_sums += torch.stack([total, count])
        return total / count.clamp(min=1), None, None

    def _without_repeats(self, labels: torch.Tensor) -> torch.Tensor:
        """Mask the rows that fill the last batches of several processes up; (B, T) to (B, T)."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return labels
        own = state.remainder - self.accelerator.process_index * labels.shape[0]
        rows = torch.arange(labels.shape[0], device=labels.device)[:, None]
        return labels.masked_fill(rows >= own, -100)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Add tokens per second of this process, and skipped records, to the training log."""
        if isinstance(self.train_dataset, StreamedExamples):
            # A resumed run has no count of its own of what the stream gave before.
            self.state.epoch = self.state.global_step / max(self.state.max_steps, 1)
        if "loss" in logs:
            self.guard.look()
            if self.guard.num_skipped:
                logs["skipped_steps"] = self.guard.num_skipped
            if self.skips is not None:
                logs["skipped_records"] = self.skips.total(self.accelerator, self.state.log_history)
            logs["tokens_per_second"] = round(self.tokens.rate(), 1)
        super().log(logs, *args)
