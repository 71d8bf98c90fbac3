"""Watches the numbers of a run: losses and gradients that are not finite, and odd curves.

Whether they are finite is kept on the device and read where the run waits for it anyway, when it
logs or saves; so nothing that is not finite is ever saved. Letters: B batches since the last look.
"""

import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from phi3v.training.checkpoints import checkpoints_of, number_of

logger = logging.getLogger(__name__)

STATUS_NOT_FINITE = 76
_NEVER = 1 << 60
_MOST_PENDING = 1000
_MOST_SHOWN = 20
_MOST_SKIPPED_IN_A_ROW = 10


class NotFiniteError(RuntimeError):
    """A loss or a gradient was NaN or infinite, and the run was stopped."""


class _Batch(NamedTuple):
    step: int
    records: tuple[str, ...]
    is_finite: torch.Tensor


class NumericsGuard:
    """Finds the first step whose loss or gradient is not finite, and the records of its batches.

    Args:
        mode: "stop" ends the run when it looks next; "skip" looks in every step, before the
            weights change, and leaves such steps out.
        checks_gradient: Whether gradients count; scaled ones of float16 overflow now and then.
        folder: Output folder, for the message.
        before_report: Called before the message names the last good checkpoint.

    Attributes:
        num_skipped: Steps left out.
    """

    def __init__(
        self,
        mode: Literal["stop", "skip"],
        *,
        checks_gradient: bool,
        folder: Path,
        before_report: Callable[[], None] = lambda: None,
    ) -> None:
        self.mode = mode
        self.checks_gradient = checks_gradient
        self.folder = folder
        self.before_report = before_report
        self.num_skipped = 0
        self._skipped_in_a_row = 0
        self._batches: list[_Batch] = []
        self._gradients: list[_Batch] = []

    def add_loss(self, step: int, records: list[str], loss: torch.Tensor) -> torch.Tensor:
        """Note the loss of one batch, a scalar.

        Returns:
            The loss for the log; with "skip", 0 in place of one that is not finite.
        """
        is_finite = torch.isfinite(loss)
        self._batches.append(_Batch(step, tuple(records), is_finite))
        return loss if self.mode == "stop" else torch.where(is_finite, loss, 0.0)

    def add_gradient(self, step: int, norm: torch.Tensor | float) -> bool:
        """Note the norm of the gradient of a step, before the weights change.

        Returns:
            Whether the step is to be left out.

        Raises:
            NotFiniteError: Too many steps in a row are left out.
        """
        if self.checks_gradient:
            whole = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
            self._gradients.append(_Batch(step, (), torch.isfinite(whole)))
        if self.mode == "stop":
            if len(self._batches) > _MOST_PENDING:
                self.look()
            return False
        found = self._first_step()
        if found == _NEVER:
            self._skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self._skipped_in_a_row += 1
            text = self._describe(found)
            if self._skipped_in_a_row > _MOST_SKIPPED_IN_A_ROW:
                raise NotFiniteError(f"{text}\n{_MOST_SKIPPED_IN_A_ROW} steps before it, too")
            logger.warning("%s; the step is left out", text)
        self._forget()
        return found != _NEVER

    def look(self) -> None:
        """Read what was noted; all processes must call this at the same places.

        Raises:
            NotFiniteError: On all processes, if anything was not finite on any of them.
        """
        if not self._batches:
            return
        found = self._first_step()
        if found != _NEVER:
            self.before_report()
            good = [path for path in checkpoints_of(self.folder) if number_of(path) < found]
            last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint"
            raise NotFiniteError(
                f"{self._describe(found)}\nthe run was stopped and saved nothing since; {last}. "
                "Look at these records, lower --learning_rate, or leave such steps out by "
                "--on_nonfinite skip"
            )
        self._forget()

    def _forget(self) -> None:
        self._batches, self._gradients = [], []

    def _first_step(self) -> int:
        """Find the first step that is not finite on any process."""
        noted = self._batches + self._gradients
        device = self._batches[0].is_finite.device
        finite = torch.stack([one.is_finite.to(device) for one in noted])
        steps = torch.tensor([one.step for one in noted]).to(device, non_blocking=True)
        first = torch.where(finite, _NEVER, steps).min()
        if _is_shared():
            distributed.all_reduce(first, distributed.ReduceOp.MIN)
        return int(first.item())

    def _describe(self, step: int) -> str:
        batches = [one for one in self._batches if one.step == step]
        bad = [one for one in batches if not one.is_finite.item()]
        own = [name for one in bad for name in one.records], [n for b in batches for n in b.records]
        found = [own]
        if _is_shared():
            found = [own] * distributed.get_world_size()
            distributed.all_gather_object(found, own)
        of_loss = [name for one in found for name in one[0]]
        names = of_loss or [name for one in found for name in one[1]]
        what = "loss" if of_loss else "gradient"
        more = [f"and {len(names) - _MOST_SHOWN} more"] if len(names) > _MOST_SHOWN else []
        listed = "\n  ".join(names[:_MOST_SHOWN] + more)
        return f"the {what} of step {step} is not finite; the records in it:\n  {listed}"


def _is_shared() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


class CurveWatch(TrainerCallback):
    """Reports a run that is dead or explodes, from the numbers that are logged anyway."""

    WINDOW = 10

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._best: tuple[float, int] | None = None
        self._told: set[str] = set()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the last lines of the log."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        self._losses = [*self._losses, logs["loss"]][-self.WINDOW :]
        self._norms = [*self._norms, logs.get("grad_norm", 1.0)][-self.WINDOW :]
        if len(self._losses) < self.WINDOW:
            return
        if max(self._norms) == 0 or len(set(self._losses)) == 1:
            self._tell(
                "dead",
                f"step {state.global_step}: the run learns nothing: in the last {self.WINDOW} log "
                f"lines the loss stays at {self._losses[-1]:.4g} and the norm of the gradient at "
                f"{self._norms[-1]:.4g}",
            )
        median = statistics.median(self._losses)
        if self._best is None or median < self._best[0]:
            self._best = median, state.global_step
        if median <= 2 * self._best[0] + 1:
            self._told.discard("explodes")
            return
        good = [path for path in checkpoints_of(self.folder) if number_of(path) <= self._best[1]]
        last = (
            f"the last checkpoint from before is {good[-1]}" if good else "no checkpoint is older"
        )
        self._tell(
            "explodes",
            f"step {state.global_step}: the run explodes: the loss is {median:.4g} after "
            f"{self._best[0]:.4g} at step {self._best[1]} (medians of {self.WINDOW} log lines); "
            f"{last}. Lower --learning_rate or --max_grad_norm",
        )

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            logger.warning(text)
