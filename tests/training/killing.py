"""Kills work at one of its steps on the disk, and checks what it leaves."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from phi3v.training.checkpoints import checkpoints_of

# What the interpreter reports before a file is opened, made, renamed or removed.
_FAILED = 3
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


Work = Callable[[], object]


def survives(
    work: Callable[[], object], folder: Path, kill_at: int, *, error: OSError | None = None
) -> bool:
    """Do the work in a child that gets SIGKILL right before its step ``kill_at`` under a folder.

    With an error, the step and all that follow fail by it instead.

    Returns:
        Whether the work was finished because it takes fewer steps.
    """
    child = os.fork()
    if child == 0:
        kill_at_step(folder, kill_at, error)
        try:
            work()
        except OSError:
            os._exit(_FAILED)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL if error is None else _FAILED), status
    return status == 0


def kill_at_step(folder: Path, kill_at: int, error: OSError | None = None) -> None:
    """Count the steps of this process on files under a folder, and end it before one of them.

    With an error, this step and all that follow fail by it instead.
    """
    seen = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _EVENTS or not str(args[0]).startswith(str(folder)):
            return
        seen += 1
        if error is not None and seen >= kill_at:
            raise error
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def child(work: Work, log: Path, environment: dict[str, str], before: Work) -> int:
    """Do the work in a child process; returns its id."""
    process = os.fork()
    if process:
        return process
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    status = 1
    try:
        before()
        status = int(work() or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def end_of(log: Path) -> str:
    """The last lines that a run wrote, for the message of a fault."""
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def check_checkpoints(output: Path) -> None:
    """Read everything that bears the name of a checkpoint, without the help of the manifest."""
    for checkpoint in checkpoints_of(output):
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if checkpoint.name != f"checkpoint-{state['global_step']}":
            raise AssertionError(f"{checkpoint} is of step {state['global_step']}")
        load_file(checkpoint / "adapter_model.safetensors")
        shards = sorted(checkpoint.glob("global_step*/*.pt"))
        for path in shards or [checkpoint / "optimizer.pt"]:
            # Those of DeepSpeed hold classes of its own.
            torch.load(path, weights_only=not shards, map_location="cpu")
        torch.load(checkpoint / "scheduler.pt", weights_only=True)


def check_entries(cache: Path) -> None:
    """Read every entry of a cache of features, if there is one, as far as its digest goes."""
    for entry in cache.glob("*/[0-9a-f][0-9a-f]/*"):
        content = entry.read_bytes()
        if len(content) <= 32 or blake2b(content[32:], digest_size=32).digest() != content[:32]:
            raise AssertionError(f"{entry} is damaged")


def check_same_run(output: Path, expected: Path) -> None:
    """Refuse a finished run that is not the unbroken one bit for bit."""
    curves = [
        [
            (line["step"], line["loss"], line["grad_norm"], line["learning_rate"])
            for line in json.loads((folder / "trainer_state.json").read_text())["log_history"]
            if "loss" in line
        ]
        for folder in (output, expected)
    ]
    assert curves[0] == curves[1], f"{output}: {curves[0]} instead of {curves[1]}"
    weights: list[Any] = [
        load_file(one / "adapter_model.safetensors") for one in (output, expected)
    ]
    for name, value in weights[1].items():
        if not torch.equal(value, weights[0][name]):
            raise AssertionError(f"{output}: {name} differs")
