"""Trains, and gets SIGKILL in the step after the one whose checkpoint a thread is writing.

python -m tests.training.writing_worker STEP FLAGS...
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from phi3v.training import saving, train
from phi3v.training.trainer import Phi3VTrainer

finish, train_step = saving.finish_writing, Phi3VTrainer.training_step
killed_at = int(sys.argv[1])
is_written = threading.Event()


def finish_never(folder: Path, step: int, **kwargs: Any) -> Path:
    """Stay right before the seal; the kill comes meanwhile."""
    if step == killed_at:
        is_written.set()
        threading.Event().wait()
    return finish(folder, step, **kwargs)


def step_and_die(self: Phi3VTrainer, *args: Any) -> Any:
    loss = train_step(self, *args)
    if self.state.global_step > killed_at:
        is_written.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return loss


if __name__ == "__main__":
    saving.finish_writing = finish_never
    Phi3VTrainer.training_step = step_and_die  # type: ignore[method-assign]  # only here
    sys.exit(train.main(sys.argv[2:]))
