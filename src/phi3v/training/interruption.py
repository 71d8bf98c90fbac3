"""Signals that end a run in good order: the step is finished, a checkpoint saved.

Slurm sends SIGUSR1 or SIGTERM before it takes a machine away; Ctrl-C is SIGINT.
"""

import os
import signal
import time
from functools import partial
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from phi3v.data.processes import rank

# "Try again later" among the statuses of sysexits.h; no signal ends a process with it.
STATUS_INTERRUPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Launchers pass on signals that the process has got itself; these are no second ones.
_SECONDS_TOGETHER = 2.0


class StopRequest:
    """Remembers the first signal; a second one ends the process at once.

    Args:
        listens: False leaves signals their usual meaning.

    Attributes:
        signal: The first signal, or None.
    """

    def __init__(self, *, listens: bool) -> None:
        self.listens = listens
        self.signal: signal.Signals | None = None
        self._time = 0.0
        self._process = os.getpid()
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self.listens:
            self._former = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a child that has not taken shelter yet
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._time = signal.Signals(number), now
            _say(f"{self.signal.name}: finishing this step and saving; again to stop at once")
        elif number != signal.SIGUSR1 and now - self._time > _SECONDS_TOGETHER:
            _say(f"{signal.Signals(number).name} again: stopped without saving")
            os._exit(128 + number)


def _say(text: str) -> None:
    if rank() == 0:
        # A handler may interrupt a print; the line goes round its buffer.
        os.write(2, f"\n{text}\n".encode())


class StopWhenAsked(TrainerCallback):
    """Stops the run at the end of a step when any of its processes has got a signal.

    One process looks at its own flag only. Several agree on it by a reduction that is read one step
    later, so that nobody waits for it; all of them stop at the same step.

    Attributes:
        has_stopped: Whether the run was stopped so.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.has_stopped = False
        self._answer: torch.Tensor | None = None
        self._copied: Any = None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop and save; at the end of an epoch, its evaluation comes first."""
        if state.global_step >= state.max_steps or not self._is_agreed(args.device):
            return
        self.has_stopped = True
        control.should_training_stop = True
        control.should_save = not _is_end_of_epoch(state)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Keep the library from doing in the middle of an epoch what belongs to its end."""
        if not self.has_stopped:
            return
        control.should_save = _is_end_of_epoch(state)
        if not _is_end_of_epoch(state):
            control.should_evaluate = control.should_log = False

    def _is_agreed(self, device: torch.device) -> bool:
        if not self.request.listens:
            return False
        asked = self.request.signal is not None
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return asked
        if self._answer is not None:
            if self._copied is not None:
                self._copied.synchronize()
            if self._answer.item():
                return True
        flag = torch.full((1,), int(asked), dtype=torch.int32, device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        if device.type == "cuda":
            self._answer = torch.empty(1, dtype=torch.int32, pin_memory=True)
            self._answer.copy_(flag, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._answer = flag
        return False


def wait_unheeding() -> None:
    """Ignore signals from now on, and wait until all processes do; for one alone, do nothing.

    A launcher that sees the first process end with a status sends the others a signal, which would
    hide theirs. What is to be saved was saved before.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    distributed.barrier()


def last_words(request: StopRequest, state: TrainerState, folder: str) -> str:
    """Say after an interrupted run what was saved and how it goes on."""
    cause = "another process's signal" if request.signal is None else request.signal.name
    return (
        f"interrupted by {cause} after step {state.global_step} of {state.max_steps}; saved "
        f"{folder}/checkpoint-{state.global_step}\n"
        "go on with the same command and --resume_from_checkpoint true"
    )


def _is_end_of_epoch(state: TrainerState) -> bool:
    return state.epoch is not None and float(state.epoch).is_integer()


def shelter_workers(loader: DataLoader) -> DataLoader:
    """Let the processes that read data ignore signals; else they would end before the run."""
    loader.worker_init_fn = partial(_ignore_signals, then=loader.worker_init_fn)
    return loader


def _ignore_signals(worker: int, *, then: Any) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if then is not None:
        then(worker)
