"""What a run loads before its first step."""

from pathlib import Path

import pytest
from benchmarks.startup import start_once

# Loaded by nobody's need: trackers that nobody asked for, and PyTorch's compiler.
IDLE = ("wandb", "tensorboard", "tensorflow", "gradio", "torch._inductor.compile_fx")


@pytest.mark.slow
def test_a_run_loads_nothing_idle_before_its_first_step(flags: list[str], tmp_path: Path) -> None:
    _, modules = start_once([*flags, "--output_dir", str(tmp_path / "out")])
    assert "phi3v.training.trainer" in modules
    assert not [name for name in IDLE if name in modules]
