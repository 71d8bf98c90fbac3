"""What watches a run: the check of the first gradients, the progress bar, the token counters."""

import time
from typing import Any

import torch
from torch import nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils.logging import tqdm


class GradientCheck(TrainerCallback):
    """Checks before the first optimizer step that exactly the trainable parameters got a gradient.

    A part that trains nothing looks like any other in a loss curve, so this is checked in every
    run.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._seen: set[str] = set()
        self.checked = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Listen to every parameter that is to be trained."""
        assert model is not None
        self.checked, self._seen = False, set()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._handles.append(
                    parameter.register_hook(lambda _, name=name: self._seen.add(name))
                )

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare once, then stop listening.

        Raises:
            RuntimeError: A parameter that should train got no gradient, or a frozen one got one.
        """
        if self.checked:
            return
        assert model is not None
        self._stop_listening()
        self.checked = True
        named = list(model.named_parameters())
        # DeepSpeed takes gradients away, so hooks listen; FSDP calls no hook but leaves them.
        silent = [
            name
            for name, p in named
            if p.requires_grad and p.grad is None and name not in self._seen
        ]
        if silent:
            raise RuntimeError(
                f"{len(silent)} parameters were to be trained but got no gradient in the first "
                f"step, first {silent[0]!r}; the run was stopped before it changed anything. If "
                "your flags ask for nothing unusual, please report this"
            )
        leaking = [name for name, p in named if not p.requires_grad and p.grad is not None]
        if leaking:
            raise RuntimeError(f"frozen parameters got a gradient: {', '.join(leaking[:5])}")

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop listening, also where no step was made."""
        self._stop_listening()

    def _stop_listening(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class TokenCounter:
    """Counts the tokens of the batches on their device, without waiting for it."""

    def __init__(self) -> None:
        self._places = 0
        self._counts: torch.Tensor | None = None
        self._started = time.perf_counter()
        self._last = (self._started, 0)

    def add(self, batch: dict[str, Any]) -> None:
        """Count one batch of (B, T) labels, with the lengths of its rows if they are padded."""
        labels = batch["labels"]
        self._places += labels.numel()
        lengths = batch.get("document_lengths", torch.full_like(labels[:1, :1], labels.numel()))
        counts = torch.stack([lengths.sum(), labels.ne(-100).sum()])
        self._counts = counts if self._counts is None else self._counts + counts

    def read(self) -> tuple[int, int, int]:
        """Return (places, real tokens, supervised tokens) so far."""
        if self._counts is None:
            return 0, 0, 0
        real, supervised = self._counts.tolist()
        return self._places, real, supervised

    def sum_over_processes(self, accelerator: Any) -> None:
        """Add up the counts of all processes; every one of them must call this."""
        if self._counts is not None:
            places = self._counts.new_tensor([self._places])
            counts = torch.cat([places, self._counts])
            self._places, *both = accelerator.reduce(counts, reduction="sum").tolist()
            self._counts = torch.tensor(both)

    def rate(self) -> float:
        """Return real tokens per second since the last call."""
        now, real = time.perf_counter(), self.read()[1]
        then, before = self._last
        self._last = (now, real)
        return (real - before) / max(now - then, 1e-9)

    @property
    def seconds(self) -> float:
        """Seconds since the counter was made."""
        return time.perf_counter() - self._started


class SkipCounter:
    """Counts the records that were skipped in training and validation, over all processes.

    Args:
        limit: Most of them; more end the run.
        left_out: Records that the check before the first step has left out; they count, too.
    """

    def __init__(self, limit: int, left_out: int) -> None:
        self.limit = limit
        self.left_out = left_out
        self._own = 0
        self._earlier: int | None = None

    def take(self, batch: dict[str, Any]) -> None:
        """Take the count out of a batch: the model does not know the key."""
        self._own += batch.pop("num_bad_records", 0)

    def total(self, accelerator: Any, log_history: list[dict[str, Any]]) -> int:
        """Add up what all processes have skipped; every one of them must call this.

        Args:
            accelerator: That of the run.
            log_history: Its log; a resumed run goes on counting from its last line.

        Raises:
            ValueError: On all processes, if there are more than the limit.
        """
        if self._earlier is None:
            counts = [line["skipped_records"] for line in log_history if "skipped_records" in line]
            self._earlier = int(counts[-1]) if counts else 0
        own = torch.tensor(self._own, device=accelerator.device)
        skipped = self._earlier + int(accelerator.reduce(own, reduction="sum"))
        if skipped + self.left_out > self.limit:
            raise ValueError(
                f"{skipped} records were skipped and {self.left_out} left out by the check, more "
                f"than --max_bad_records {self.limit}; the log names them: repair them or raise "
                "the limit, and go on with --resume_from_checkpoint true"
            )
        return skipped


class ProgressBar(TrainerCallback):
    """One line with loss, learning rate and tokens per second; evaluations get their own lines."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the bar on the first process."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest numbers."""
        if self._bar is None or not logs:
            return
        if "eval_loss" in logs:
            self._bar.write(f"step {state.global_step}: eval_loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.4f}, lr {logs.get('learning_rate', 0):.2e}, "
                f"{logs.get('tokens_per_second', 0):,.0f} tokens/s"
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
