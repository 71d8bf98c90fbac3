"""A loss that is not finite on one process stops, or skips a step of, all processes."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.training.launching import (
    ROOT,
    TORCHRUN,
    compile_deepspeed_op,
    launch,
    write_mixed_data,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STOPPED = ["ddp", "zero2"]


class Outcome(NamedTuple):
    """What two processes printed, and the folder with what each of them wrote."""

    output: str
    folder: Path

    def of(self, name: str) -> list[dict[str, Any]]:
        return [json.loads((self.folder / f"{name}.{rank}").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Outcome:
    """In step 2 the processes read the records r2 and r3."""
    compile_deepspeed_op()
    folder = tmp_path_factory.mktemp("spoiled")
    data = write_mixed_data(folder)
    words = [
        *("--model_id", str(base_folder), "--data_path", str(data), "--image_folder", str(folder)),
        *("--num_crops", "2", "--max_num_frames", "2", "--use_cpu", "True", "--max_steps", "4"),
        *("--dataloader_num_workers", "0", "--report_to", "none", "--disable_tqdm", "True"),
        *("--per_device_train_batch_size", "1", "--train_sampling_strategy", "sequential"),
        *("--gradient_accumulation_steps", "1", "--lora_enable", "True", "--lora_rank", "4"),
        *("--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1"),
    ]
    more: dict[str, list[str]] = {
        "skip": ["--on_nonfinite", "skip"],
        "ddp": [],
        "zero2": ["--deepspeed", str(ROOT / "scripts" / "zero2.json")],
        "zero3": ["--deepspeed", str(ROOT / "scripts" / "zero3.json")],
    }
    jobs = [
        {"name": name, "argv": [*words, *flags, "--output_dir", str(folder / name)]}
        for name, flags in more.items()
    ]
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs), encoding="utf-8")
    two = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.spoiling_worker"]
    printed = launch([*TORCHRUN, *two, str(listed)], 600, status=None)
    kept = {path.parent.name: path.name for path in folder.glob("*/checkpoint-*")}
    assert kept.items() >= dict.fromkeys([*STOPPED, "zero3"], "checkpoint-1").items()
    return Outcome(printed, folder)


@pytest.mark.parametrize("way", STOPPED)
def test_both_processes_stop_and_name_the_records_of_the_one(outcome: Outcome, way: str) -> None:
    first, _ = outcome.of(way)
    # The one that speaks waits for the checkpoint that is being written.
    assert "checkpoint-1." in first["stopped"]
    for one in outcome.of(way):
        assert "loss of step 2 is not finite" in one["stopped"]
        assert "'r3'" in one["stopped"] and "'r2'" not in one["stopped"]


def test_both_processes_skip_the_step_and_keep_equal_weights(outcome: Outcome) -> None:
    one, two = outcome.of("skip")
    assert one["skipped"] == two["skipped"] == 1 and one["logged"][:4] == [None, 1, 1, 1]
    assert one["weights"] == two["weights"] and math.isfinite(one["weights"])


def test_both_processes_end_with_the_status(outcome: Outcome) -> None:
    assert outcome.output.count("exitcode  : 76") == 2
    assert outcome.output.count("phi3v train: stopped: the loss of step 2 is not finite") == 1
