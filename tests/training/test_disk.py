"""A disk that is full, becomes read-only or vanishes in the middle of a run."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import Run
from transformers import TrainerCallback

from phi3v import cli
from phi3v.training import train
from phi3v.training.trainer import Phi3VTrainer

pytestmark = pytest.mark.slow

SAVING = ["--lora_enable", "True", "--save_strategy", "steps", "--save_steps", "1"]
SAVING += ["--max_steps", "6", "--per_device_train_batch_size", "2"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a file system can be mounted by root only: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


class Before(TrainerCallback):
    """Runs a command of the system before a step, when the checkpoint of the last one is whole."""

    def __init__(self, step: int, command: list[str]) -> None:
        self.step, self.command = step, command

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            out = Path(args.output_dir)
            last, aside = out / f"checkpoint-{state.global_step}", out / "unfinished"
            deadline = time.monotonic() + 120
            while (aside.exists() or not last.exists()) and time.monotonic() < deadline:
                time.sleep(0.01)
            subprocess.run(self.command, check=True)


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, *command: str) -> None:
    make = Phi3VTrainer.__init__

    def make_with_callback(self: Any, **kwargs: Any) -> None:
        make(self, **kwargs)
        self.add_callback(Before(step, list(command)))

    monkeypatch.setattr(Phi3VTrainer, "__init__", make_with_callback)


def test_full_disk_ends_the_run_which_goes_on_when_there_is_room(
    start: Callable[..., Run], disk: Path
) -> None:
    out = disk / "out"
    with pytest.raises(OSError, match="the disk is full.*is whole: once the folder"):
        start(*SAVING, folder=str(out))
    assert list(out.glob("checkpoint-*")) and not list((out / "unfinished").iterdir())
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    resumed = start(*SAVING, "--resume_from_checkpoint", "true", folder=str(out))
    assert resumed.losses() == start(*SAVING, folder="unbroken").losses()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["mount", "-o", "remount,ro"], "Read-only file system.*checkpoint-2 is whole"),
        (["umount", "-l"], "is not there any more"),
    ],
    ids=["read-only", "vanished"],
)
def test_disk_that_goes_away_ends_the_run(
    start: Callable[..., Run],
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    expected: str,
) -> None:
    # By hand, unlike by a fault, no disk becomes read-only on which a file is open for writing.
    monkeypatch.setattr(train, "kept_to_one_run", nullcontext)
    before_step(monkeypatch, 3, *command, str(disk))
    with pytest.raises(OSError, match=f"checkpoint-3 could not be written: .*{expected}"):
        start(*SAVING, "--save_total_limit", "1", folder=str(disk / "out"))
    if command[0] == "umount":
        assert not any(disk.iterdir())


def test_read_only_folder_is_refused_before_anything_is_loaded(
    flags: list[str], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert cli.main(["train", *flags, "--output_dir", str(disk / "out")]) == 74
    assert "is read-only for you; name another folder" in capsys.readouterr().err


def test_clock_that_jumps_back_keeps_the_newest_checkpoints(
    start: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step(
        monkeypatch, 5, "sh", "-c", f"touch -d 2040-01-01 {tmp_path}/out/checkpoint-*",
    )  # fmt: skip
    start(*SAVING, "--save_total_limit", "2", folder="out")
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert kept == ["checkpoint-5", "checkpoint-6"]
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 6
