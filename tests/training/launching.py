"""Starts processes with a hard time limit, and the data that makes ranks differ."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tests.data.clips import write_clip
from tests.training.conftest import TURN, record

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
SECONDS_TO_COMPILE = 900


def drop_stale_locks() -> None:
    """Remove locks that killed processes left in the cache of compiled operators.

    DeepSpeed's loader waits for them for ever.
    """
    default = Path.home() / ".cache" / "torch_extensions"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    for lock in root.rglob("lock"):
        if time.time() - lock.stat().st_mtime > SECONDS_TO_COMPILE:
            lock.unlink(missing_ok=True)


def environment(**more: str) -> dict[str, str]:
    """The environment of a fresh shell with the checkout on its path."""
    drop_stale_locks()
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    # The deepspeed launcher looks for its tools beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    checkout = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return kept | {"PATH": path, "PYTHONPATH": checkout, "OMP_NUM_THREADS": "1"} | more


def launch(
    command: Sequence[str],
    seconds: float,
    *,
    cwd: Path | None = None,
    status: int | None = 0,
    **more: str,
) -> str:
    """Run a command and everything it starts; return its output.

    Fails when the status differs (None: when it is 0), or when the time is over: then a process
    waits for another in vain.
    """
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{output[-6000:]}") from None
    expected = process.returncode != 0 if status is None else process.returncode == status
    assert expected, f"status {process.returncode}:\n{output[-6000:]}"
    return output


@functools.cache
def compile_deepspeed_op() -> None:
    """Let DeepSpeed compile what it needs on a CPU, so that no time limit of a test is spent on it.

    Takes a minute or two on an idle machine, once.
    """
    code = "from phi3v.training.processes import connect_for_deepspeed as c; c(on_cpu=True)"
    launch([sys.executable, "-c", code], SECONDS_TO_COMPILE)


def write_mixed_data(folder: Path) -> Path:
    """Eight records; with two ranks, each batch below stands beside the next one.

    text | picture, two pictures | text, text | video, picture | text: in every step of four one
    rank has pictures where the other has none, in both orders.
    """
    for name, size in {"wide": (110, 50), "square": (56, 56)}.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
    write_clip(folder / "clip.mkv", num_frames=4, rate=1)
    two = [("<image>\n<image>\nWhich is wider?", "The second one, by far.")]
    records: list[dict[str, Any]] = [
        record(0, [("Hello", "Hi."), ("Who are you?", "A small model.")]),
        record(1, [TURN], image="wide.png"),
        record(2, two, image=["square.png", "wide.png"]),
        record(3, [("Count to three", "One, two, three.")]),
        record(4, [("Good night", "Sleep well.")]),
        record(5, [("<video>\nWhat happens?", "Bits flicker.")], video="clip.mkv"),
        record(6, [TURN], image="square.png"),
        record(7, [("Bye", "See you.")]),
    ]
    file = folder / "mixed.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def run_jobs(
    jobs: list[dict[str, Any]], folder: Path, launcher: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Run jobs by the worker in one process group; return its results by name."""
    listed, results = folder / "jobs.json", folder / "results.json"
    listed.write_text(json.dumps(jobs), encoding="utf-8")
    launch(
        [*launcher, "-m", "tests.training.distributed_worker", str(listed), str(results)], seconds
    )
    return json.loads(results.read_text(encoding="utf-8"))
