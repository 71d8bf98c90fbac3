"""Signals: the step is finished, a checkpoint saved, the run ends with status 75."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.training.killing import check_same_run
from tests.training.launching import TORCHRUN, environment
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState, TrainingArguments

from phi3v.training import interruption
from phi3v.training.interruption import StopRequest, StopWhenAsked, shelter_workers


def one_step(stop: StopWhenAsked, tmp_path: Path, *, step: int = 3, epoch: float) -> TrainerControl:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    state = TrainerState(global_step=step, epoch=epoch, max_steps=10)
    # What the library asks for at the end of every epoch.
    control = TrainerControl()
    stop.on_step_end(args, state, control)
    return control


def at_end_of_epoch(stop: StopWhenAsked, tmp_path: Path, *, epoch: float) -> TrainerControl:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    control = TrainerControl(should_evaluate=True, should_save=True, should_log=True)
    stop.on_epoch_end(args, TrainerState(epoch=epoch), control)
    return control


def asked_to_stop(tmp_path: Path) -> StopWhenAsked:
    with StopRequest(listens=True) as request:
        os.kill(os.getpid(), signal.SIGUSR1)
    return StopWhenAsked(request)


def test_without_a_signal_nothing_stops(tmp_path: Path) -> None:
    stop = StopWhenAsked(StopRequest(listens=True))
    assert not one_step(stop, tmp_path, epoch=0.5).should_training_stop
    assert at_end_of_epoch(stop, tmp_path, epoch=1.0).should_evaluate


def test_signal_saves_at_the_end_of_the_step(tmp_path: Path) -> None:
    stop = asked_to_stop(tmp_path)
    control = one_step(stop, tmp_path, epoch=0.5)
    assert control.should_training_stop and control.should_save
    later = at_end_of_epoch(stop, tmp_path, epoch=0.5)
    assert not (later.should_evaluate or later.should_save or later.should_log)


def test_signal_in_the_last_step_of_an_epoch_lets_it_be_evaluated_before_saving(
    tmp_path: Path,
) -> None:
    stop = asked_to_stop(tmp_path)
    control = one_step(stop, tmp_path, epoch=2.0)
    assert control.should_training_stop and not control.should_save
    later = at_end_of_epoch(stop, tmp_path, epoch=2.0)
    assert later.should_evaluate and later.should_save


def test_signal_in_the_last_step_of_all_changes_nothing(tmp_path: Path) -> None:
    stop = asked_to_stop(tmp_path)
    assert not one_step(stop, tmp_path, step=10, epoch=1.5).should_save
    assert not stop.has_stopped


def test_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    with StopRequest(listens=True):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def test_turned_off_signals_keep_their_meaning() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(listens=False):
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("second", "apart", "status"),
    [
        (signal.SIGTERM, 10, 143),
        (signal.SIGINT, 10, 130),
        (signal.SIGINT, 0, 0),
        (signal.SIGUSR1, 10, 0),
    ],
)
def test_second_signal_ends_at_once_unless_it_is_the_same_one_passed_on(
    second: signal.Signals, apart: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (child := os.fork()) == 0:
        clock = iter([0.0, float(apart)])
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        with StopRequest(listens=True):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), second)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def test_processes_that_read_data_ignore_signals() -> None:
    class Pids(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, position: int) -> int:
            return os.getpid()

    loader = iter(shelter_workers(DataLoader(Pids(), 1, num_workers=1, prefetch_factor=1)))
    worker = int(next(loader))
    for number in interruption.SIGNALS:
        os.kill(worker, number)
    time.sleep(0.1)
    assert [int(one) for one in loader] == [worker] * 5


def start(command: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if list(folder.glob("checkpoint-*")) or process.poll() is not None:
            return
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupted_run_is_resumed_and_ends_as_the_unbroken_one(
    flags: list[str], tmp_path: Path
) -> None:
    """Ctrl-C reaches the whole process group, the processes that read data included."""
    words = [*flags, "--lora_enable", "--per_device_train_batch_size", "2", "--max_steps", "24"]
    words += ["--dataloader_num_workers", "1", "--save_strategy", "steps", "--save_steps", "2"]
    command = [sys.executable, "-m", "phi3v", "train", *words]
    out = tmp_path / "out"
    process = start([*command, "--output_dir", str(out)], tmp_path)
    wait_for_checkpoint(out, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == interruption.STATUS_INTERRUPTED, output
    assert "interrupted by SIGINT after step" in output and "Traceback" not in output
    assert not (out / "adapter_config.json").exists()
    for more in (["--output_dir", str(out), "--resume_from_checkpoint", "auto"],
                 ["--output_dir", str(tmp_path / "unbroken")]):  # fmt: skip
        process = start([*command, *more], tmp_path)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    check_same_run(out, tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_to_one_process_stops_both_at_the_same_step(
    flags: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [*flags, "--lora_enable", "--per_device_train_batch_size", "1", "--max_steps", "5000"]
    words += ["--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2"]
    module = ["--standalone", "--nproc-per-node", "2", "-m", "phi3v.training.train"]
    process = start([*TORCHRUN, *module, *words, "--output_dir", str(out)], tmp_path)
    wait_for_checkpoint(out, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert output.count("exitcode  : 75") == 2 and output.count("interrupted by") == 1, output
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert {path.name for path in newest.glob("rng_state*")} == {"rng_state_0.pth",
                                                                 "rng_state_1.pth"}  # fmt: skip
    state = json.loads((newest / "trainer_state.json").read_text())
    assert f"after step {state['global_step']} of 5000" in output
