"""Records are checked before the first step, once; those that fail later stop or are skipped."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.training.conftest import TURN, Run, record
from tests.training.launching import TORCHRUN, run_jobs

from phi3v import cli
from phi3v.data import survey as survey_module
from phi3v.data.dataset import SupervisedDataset
from phi3v.model.loading import load_processor
from phi3v.model.processing import Phi3VProcessor
from phi3v.training import datasets
from phi3v.training.arguments import DataArguments
from phi3v.training.datasets import build_datasets


@pytest.fixture(scope="module")
def processor(base_folder: Path) -> Phi3VProcessor:
    return load_processor(base_folder, num_crops=2)


@pytest.fixture
def data(tmp_path: Path) -> DataArguments:
    """Eight records: pictures 1, 3, 5, 7 and text."""
    for number in range(1, 8, 2):
        Image.effect_noise((110, 50), 60).convert("RGB").save(tmp_path / f"{number}.png")
    records = [
        record(n, [TURN], image=f"{n}.png") if n % 2 else record(n, [("Hello", f"Hi, {n}.")])
        for n in range(8)
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return DataArguments(str(tmp_path / "data.json"), str(tmp_path), num_crops=2, max_num_frames=2)


def folder_of(data: DataArguments) -> Path:
    return Path(str(data.image_folder))


def test_a_second_start_inspects_nothing(
    data: DataArguments, processor: Phi3VProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_datasets(data, processor)[0]
    monkeypatch.setattr(survey_module, "inspect_record", None)
    assert build_datasets(data, processor)[0].lengths() == first.lengths()
    data.max_seq_length = 100
    with pytest.raises(TypeError):
        build_datasets(data, processor)


def test_bad_records_are_refused_before_the_first_step_and_looked_at_again(
    data: DataArguments, processor: Phi3VProcessor
) -> None:
    picture = (folder_of(data) / "3.png").read_bytes()
    (folder_of(data) / "3.png").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 8 records are bad\n  record 'r3' .*3.png"):
            build_datasets(data, processor)
    (folder_of(data) / "3.png").write_bytes(picture)
    assert len(build_datasets(data, processor)[0]) == 8


def test_bad_records_are_left_out_on_request_and_named(
    data: DataArguments, processor: Phi3VProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    data.on_bad_record = "skip"
    picture = (folder_of(data) / "3.png").read_bytes()
    (folder_of(data) / "3.png").unlink()
    assert len(build_datasets(data, processor)[0]) == 7
    assert "left out: record 'r3'" in caplog.text
    (folder_of(data) / "3.png").write_bytes(picture)
    assert len(build_datasets(data, processor, resumed=True)[0]) == 7
    assert len(build_datasets(data, processor)[0]) == 8
    (folder_of(data) / "3.png").unlink()
    data.max_bad_records = 0
    data.num_crops = 1  # unused here, but the survey above must not be taken
    (folder_of(data) / "data.json").touch()
    with pytest.raises(ValueError, match="1 records are bad, more than --max_bad_records 0"):
        build_datasets(data, processor)


def test_the_check_can_be_left_out(data: DataArguments, processor: Phi3VProcessor) -> None:
    (folder_of(data) / "3.png").unlink()
    data.check_data = False
    train_set = build_datasets(data, processor)[0]
    assert len(train_set) == 8 and len(train_set[0]["input_ids"]) > 3


def test_every_flag_about_media_reaches_the_data_set(
    data: DataArguments, processor: Phi3VProcessor
) -> None:
    data.check_data = False
    for name, value in {
        "exif_orientation": True,
        "max_image_pixels": 7,
        "allow_urls": True,
        "allow_absolute_paths": True,
        "jpeg_draft": True,
    }.items():
        assert getattr(datasets.media_options(data), name) != value
        setattr(data, name, value)
        assert getattr(build_datasets(data, processor)[0].media_options, name) == value


def vanish_after_check(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a file vanish between the check and the first step."""
    build = datasets.build_datasets

    def built(*args: Any, **kwargs: Any) -> Any:
        made = build(*args, **kwargs)
        path.unlink(missing_ok=True)
        return made

    monkeypatch.setattr("phi3v.training.preparing.build_datasets", built)


def words(data: DataArguments, *more: str) -> list[str]:
    return [
        *("--data_path", data.data_path, "--image_folder", str(data.image_folder)),
        *("--per_device_train_batch_size", "1", "--max_steps", "8"),
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", ["0", "1"])
def test_a_vanished_file_ends_the_run_in_one_line_that_names_the_record(
    flags: list[str],
    data: DataArguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    num_workers: str,
) -> None:
    vanish_after_check(monkeypatch, tmp_path / "5.png")
    more = ["--output_dir", str(tmp_path / "out"), "--dataloader_num_workers", num_workers]
    assert cli.main(["train", *flags, *words(data, *more)]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error:" in one]
    assert line.startswith("phi3v train: error: record 'r5' (index 5 of data.json): 5.png does not")


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--packing", "--pack_tokens", "200"]])
def test_a_skipped_record_is_counted_and_the_limit_ends_the_run(
    start: Callable[..., Run],
    data: DataArguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: list[str],
) -> None:
    skip = ["--on_bad_record", "skip", "--num_train_epochs", "2", "--max_steps", "-1", *mode]
    vanish_after_check(monkeypatch, tmp_path / "5.png")
    run = start(*words(data, *skip), folder="out")
    logged = [one["skipped_records"] for one in run.trainer.state.log_history if "loss" in one]
    assert logged[-1] == 2 and all(torch.isfinite(torch.tensor(run.losses())))
    with pytest.raises(ValueError, match="2 records were skipped .*--max_bad_records 1"):
        start(*words(data, *skip, "--max_bad_records", "1"), folder="other")


@pytest.mark.slow
def test_a_run_that_skips_resumes_as_the_unbroken_one(
    start: Callable[..., Run],
    data: DataArguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vanish_after_check(monkeypatch, tmp_path / "5.png")
    steps = words(data, "--on_bad_record", "skip", "--save_strategy", "steps", "--save_steps", "6")
    whole = start(*steps, "--max_steps", "12", folder="whole")
    # The file is back in the meantime, and vanishes again.
    Image.effect_noise((110, 50), 60).convert("RGB").save(tmp_path / "5.png")
    checkpoint = str(whole.folder / "checkpoint-6")
    resumed = start(
        *steps, "--max_steps", "12", "--resume_from_checkpoint", checkpoint, folder="resumed"
    )
    assert resumed.losses() == whole.losses()
    histories = (run.trainer.state.log_history for run in (whole, resumed))
    skipped = [[one["skipped_records"] for one in log if "loss" in one] for log in histories]
    assert skipped[0] == skipped[1] and skipped[0][-1] >= 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_skip_in_step_and_train_what_one_does(
    flags: list[str], data: DataArguments, tmp_path: Path
) -> None:
    build_datasets(data, load_processor(flags[1], num_crops=2))  # the survey is kept
    (tmp_path / "5.png").unlink()
    results = {}
    launchers = {1: [sys.executable], 2: [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]}
    for ranks, launcher in launchers.items():
        argv = words(
            data,
            *("--on_bad_record", "skip", "--output_dir", str(tmp_path / f"out{ranks}")),
            *("--gradient_accumulation_steps", str(2 // ranks), "--max_steps", "4"),
            *("--num_train_epochs", "1", "--padding_free", "False"),
        )
        jobs = [{"name": "run", "argv": [*flags, *argv]}]
        results[ranks] = run_jobs(jobs, tmp_path, launcher, 200)["run"]
    assert results[2]["losses"] == pytest.approx(results[1]["losses"], abs=1e-5)
    assert results[2]["skipped"] == results[1]["skipped"] and results[1]["skipped"][-1] == 1


def test_the_data_set_of_an_unchecked_run_still_names_bad_records(
    data: DataArguments, processor: Phi3VProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    (folder_of(data) / "3.png").unlink()
    dataset = SupervisedDataset(data.data_path, processor, data.image_folder, on_bad_record="skip")
    with caplog.at_level(logging.ERROR):
        assert dataset[3].get("is_bad")
    assert "skipped record 'r3'" in caplog.text
