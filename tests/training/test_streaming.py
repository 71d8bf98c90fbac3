"""Training on a stream: resumed exactly, shared out over processes, refused where it fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.training.conftest import Run
from tests.training.launching import TORCHRUN, run_jobs
from tests.training.test_resume import StopAfter
from transformers import TrainingArguments

from phi3v.data.dataset import SupervisedDataset
from phi3v.model.loading import load_processor
from phi3v.training.checks import check_arguments
from phi3v.training.datasets import build_datasets
from phi3v.training.flags import parse_arguments

NEEDED = ["--model_id", "m", "--data_path", "d.jsonl", "--use_cpu", "--streaming"]
STREAM = ["--streaming", "True", "--shuffle_buffer", "3"]


@pytest.fixture
def lines(data_folder: Path) -> Path:
    """The records of ``data.json``, one per line."""
    path = data_folder / "lines.jsonl"
    records = json.loads((data_folder / "data.json").read_text())
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_a_resumed_stream_equals_the_unbroken_one(
    start: Callable[..., Run], lines: Path, monkeypatch: pytest.MonkeyPatch, num_workers: str
) -> None:
    flags = [
        *STREAM,
        *("--data_path", str(lines), "--max_steps", "6", "--lora_enable", "True"),
        *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"),
        *("--lora_dropout", "0.2", "--dataloader_num_workers", num_workers),
        *("--save_strategy", "steps", "--save_steps", "1", "--lr_scheduler_type", "cosine"),
    ]
    unbroken = start(*flags, folder="unbroken")
    with monkeypatch.context() as patch:
        from phi3v.training.trainer import Phi3VTrainer

        make = Phi3VTrainer.__init__

        def make_and_stop(self, **kwargs):
            make(self, **kwargs)
            self.add_callback(StopAfter(3))

        patch.setattr(Phi3VTrainer, "__init__", make_and_stop)
        start(*flags, folder="broken")
    resumed = start(*flags, "--resume_from_checkpoint", "true", folder="broken")
    assert len(unbroken.losses()) == 6
    assert resumed.losses() == unbroken.losses()
    epochs = [line["epoch"] for line in resumed.trainer.state.log_history if "loss" in line]
    assert epochs == sorted(epochs) and epochs[-1] == 1
    expected = dict(unbroken.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.slow
def test_two_processes_with_two_workers_train_on_every_record_once(
    flags: list[str], lines: Path, tmp_path: Path
) -> None:
    common = [*flags, *STREAM, "--data_path", str(lines), "--per_device_train_batch_size", "2"]
    alone = [*common, "--output_dir", str(tmp_path / "one"), "--max_steps", "4"]
    shared = [*common, "--output_dir", str(tmp_path / "two"), "--max_steps", "2"]
    shared += ["--dataloader_num_workers", "2"]
    results = []
    for name, words, processes in (("one", alone, 1), ("two", shared, 2)):
        folder = tmp_path / f"jobs_{name}"
        folder.mkdir()
        launcher = [*TORCHRUN, "--nproc-per-node", str(processes), "--master-port", "29653"]
        jobs = [{"name": name, "argv": words}]
        results.append(run_jobs(jobs, folder, launcher, seconds=240)[name])
    assert results[1]["world_size"] == 2
    # Real and supervised tokens of all processes together.
    assert results[0]["tokens"][1:] == results[1]["tokens"][1:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--streaming needs --max_steps"),
        (["--max_steps", "3", "--packing"], "--streaming contradicts --packing"),
        (
            ["--max_steps", "3", "--train_sampling_strategy", "group_by_length"],
            "--streaming contradicts --train_sampling_strategy",
        ),
        (["--max_steps", "3", "--shuffle_buffer", "0"], "--shuffle_buffer is 0, expected at least"),
        pytest.param(
            ["--max_steps", "3", "--dataloader_in_order", "False"],
            "contradicts --dataloader_in_order",
            marks=pytest.mark.skipif(
                not hasattr(TrainingArguments, "dataloader_in_order"), reason="transformers <5.15"
            ),
        ),
    ],
)
def test_what_a_stream_cannot_do_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_arguments(*parse_arguments([*NEEDED, *words])[0][:4])


def test_hints_say_what_a_stream_leaves_out() -> None:
    hints = check_arguments(*parse_arguments([*NEEDED, "--max_steps", "3"])[0][:4])
    assert any("not checked before the run" in hint for hint in hints)
    plain = [word for word in NEEDED if word != "--streaming"]
    hints = check_arguments(*parse_arguments([*plain, "--shuffle_buffer", "5"])[0][:4])
    assert any("--shuffle_buffer has no effect" in hint for hint in hints)


def test_a_mixture_says_what_each_source_gives(
    flags: list[str], data_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mix = tmp_path / "mix.yaml"
    source = {"path": str(data_folder / "data.json"), "image_folder": str(data_folder)}
    mix.write_text(json.dumps([source | {"name": "whole"}, source | {"weight": 0.5}]))
    words = [*flags, "--data_path", str(mix), "--output_dir", str(tmp_path / "out")]
    arguments, _ = parse_arguments(words)
    processor = load_processor(arguments.model.model_id, num_crops=2)
    train_set, _ = build_datasets(arguments.data, processor)
    assert isinstance(train_set, SupervisedDataset) and len(train_set.lengths()) == 12
    assert f"training records: whole 8, {source['path']} 4" in caplog.text
