"""What a run loads before its first step."""

import json
import subprocess
import sys

import pytest

# Loaded by nobody's need: trackers that nobody asked for, and PyTorch's compiler.
IDLE = ("wandb", "tensorboard", "tensorflow", "gradio", "torch._inductor.compile_fx")
SCRIPT = """
import json, sys, time
from phi3v.training import train, trainer

def stop(self, model, inputs, *args):
    print("\\n" + json.dumps([time.process_time(), sorted(sys.modules)]))
    sys.exit(0)

trainer.Phi3VTrainer.training_step = stop
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_reaches_its_first_step_soon_and_loads_nothing_idle(
    flags: list[str], tmp_path
) -> None:
    command = [sys.executable, "-c", SCRIPT, *flags, "--output_dir", str(tmp_path / "out")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, modules = json.loads(output.splitlines()[-1])
    assert not [name for name in IDLE if name in modules]
    # 5.3 CPU seconds where this was written; busy machines need more.
    assert seconds < 12
