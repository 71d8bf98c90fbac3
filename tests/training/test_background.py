"""Checkpoints of adapter runs are written by a thread while the steps go on."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import Run
from tests.training.killing import check_same_run
from tests.training.launching import ROOT, launch
from transformers import TrainerCallback

from phi3v.training import adapters, saving
from phi3v.training.background import BackgroundWriter
from phi3v.training.saving import SavingTrainer
from phi3v.training.snapshots import copy_to_host
from phi3v.training.trainer import Phi3VTrainer

SECONDS = 120
SAVING = ["--lora_enable", "--lora_dropout", "0.1", "--per_device_train_batch_size", "2"]
SAVING += ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "4"]
SAVING += ["--lora_namespan_exclude", "['lm_head', 'embed_tokens']"]


def fail() -> None:
    raise OSError("no room")


@pytest.fixture
def writer() -> Any:
    writer = BackgroundWriter()
    yield writer
    writer.close()


def test_work_waits_for_the_work_before_it(writer: BackgroundWriter) -> None:
    goes_on, done = threading.Event(), []

    def first() -> None:
        assert goes_on.wait(SECONDS)
        done.append(1)

    writer.start(first)
    writer.check()
    assert not done
    threading.Timer(0.05, goes_on.set).start()
    writer.start(lambda: done.append(2))
    assert done[:1] == [1]
    writer.wait()
    assert done == [1, 2]


def test_error_is_raised_once_to_who_waits(writer: BackgroundWriter) -> None:
    writer.start(fail)
    with pytest.raises(OSError, match="no room"):
        writer.wait()
    writer.wait()
    writer.start(fail)
    with pytest.raises(OSError, match="no room"):
        writer.start(fail)


def test_error_is_raised_to_the_next_step_that_checks(writer: BackgroundWriter) -> None:
    writer.start(fail)
    with pytest.raises(OSError, match="no room"):
        for _ in range(100 * SECONDS):
            writer.check()
            threading.Event().wait(0.01)


def test_error_that_nobody_met_is_logged_at_the_end(
    writer: BackgroundWriter, caplog: pytest.LogCaptureFixture
) -> None:
    writer.start(fail)
    writer.close()
    assert "no room" in caplog.text


def test_copies_do_not_change_with_their_originals() -> None:
    value = torch.arange(6.0).reshape(2, 3).T
    state = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": value}}, "betas": (0.9, [1])}
    copied = copy_to_host(state)
    value.zero_()
    state["betas"][1].append(2)
    assert copied["state"][0]["exp_avg"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert copied["state"][0]["step"] == 3 and copied["betas"] == (0.9, [1])


class After(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, do: Callable[[], None]) -> None:
        self.step, self.do = step, do

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.do()


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], None]) -> None:
    make = Phi3VTrainer.__init__

    def make_with_callback(self: Any, **kwargs: Any) -> None:
        make(self, **kwargs)
        self.add_callback(After(step, do))

    monkeypatch.setattr(Phi3VTrainer, "__init__", make_with_callback)


@pytest.mark.slow
def test_steps_go_on_while_a_checkpoint_is_written(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    goes_on, writers = threading.Event(), {}
    finish, is_over = saving.finish_writing, []

    def note(what: str) -> None:
        thread = threading.current_thread()
        if not (is_over and thread is threading.main_thread()):
            writers.setdefault(thread.name, set()).add(what)

    def noted(what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any, **kwargs: Any) -> Any:
            note(what)
            return work(*args, **kwargs)

        return do

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if not args or not str(args[0]).startswith(str(tmp_path / "out" / "unfinished")):
            return
        if event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR):
            note(event)

    def finish_late(*args: Any, **kwargs: Any) -> Path:
        # The sixth step never comes if the fifth waits for this.
        assert goes_on.wait(SECONDS), "the steps wait for the checkpoint"
        return finish(*args, **kwargs)

    monkeypatch.setattr(saving, "finish_writing", finish_late)
    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(torch, "save", noted("torch.save", torch.save))
    monkeypatch.setattr(adapters, "save_file", noted("save_file", adapters.save_file))

    def let_go() -> None:
        assert not (tmp_path / "out" / "checkpoint-4").exists()
        goes_on.set()
        is_over.append("the rest writes the result")

    # From the start of the run files are written that are no checkpoints.
    after_step(monkeypatch, 1, writers.clear)
    after_step(monkeypatch, 6, let_go)
    sys.addaudithook(watch)
    run = start(*SAVING)
    assert len(run.losses()) == 6 and (run.folder / "checkpoint-4" / "manifest.json").is_file()
    (thread,) = writers
    assert thread.startswith("checkpoint")
    assert writers[thread] >= {"torch.save", "save_file", "fsync", "open", "os.mkdir"}


@pytest.mark.slow
def test_files_are_those_that_the_library_writes(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = start(*SAVING, folder="ours").folder / "checkpoint-4"
    monkeypatch.setattr(SavingTrainer, "saves_in_background", False)
    theirs = start(*SAVING, folder="theirs").folder / "checkpoint-4"
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names
    # The log holds speeds, the manifest what differs between them, the others zip files.
    differ = {"trainer_state.json", "manifest.json", "run_facts.json"}
    for name in names - differ - {"optimizer.pt", "scheduler.pt", "rng_state.pth"}:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        own, expected = (torch.load(one / name, weights_only=False) for one in (ours, theirs))
        assert str(own) == str(expected), name
    own, expected = (torch.load(one / "optimizer.pt")["state"] for one in (ours, theirs))
    torch.testing.assert_close(own, expected, rtol=0, atol=0)
    assert load_file(ours / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_while_a_checkpoint_is_written_beside_steps_nothing_is_lost(
    start: Callable[..., Run], flags: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [*SAVING, "--save_steps", "2", "--max_steps", "8", "--output_dir", str(out)]
    command = [sys.executable, "-m", "tests.training.writing_worker", "4", *flags, *words]
    launch(command, 300, cwd=ROOT, status=-9)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (out / "unfinished" / "checkpoint-4" / "optimizer.pt").is_file()
    more = [*SAVING, "--save_steps", "2", "--max_steps", "8"]
    start(*more, "--resume_from_checkpoint", "auto")
    start(*more, folder="unbroken")
    check_same_run(out, tmp_path / "unbroken")
