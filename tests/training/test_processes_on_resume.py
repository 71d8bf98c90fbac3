"""A run goes on with another number of processes where its steps keep their records."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.conftest import Run
from tests.training.launching import TORCHRUN, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "phi3v.training.train"]


def test_two_processes_become_one_with_twice_the_accumulation(
    start: Callable[..., Run], flags: list[str], tmp_path: Path
) -> None:
    words = ["--lora_enable", "True", "--lora_dropout", "0", "--save_strategy", "steps"]
    words += ["--save_steps", "2", "--per_device_train_batch_size", "1"]
    launch([*TWO, *flags, *words, "--output_dir", str(tmp_path / "out")], 300, cwd=tmp_path)
    on = [*words, "--max_steps", "4"]
    with pytest.raises(ValueError, match="accumulation_steps 2 makes the steps equal"):
        start(*on, "--resume_from_checkpoint", "true")
    on += ["--gradient_accumulation_steps", "2"]
    resumed = start(*on, "--resume_from_checkpoint", "true").losses()
    # Sums over processes and over batches round differently.
    assert resumed == pytest.approx(start(*on, folder="whole").losses(), rel=1e-3)
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
