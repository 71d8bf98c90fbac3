"""CPU seconds from starting `phi3v train` on a tiny model to its first step, on one thread.

python -m benchmarks.startup
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from phi3v.model.tiny import write_tiny_checkpoint

# Stops where the first batch arrives, and prints what that took and which modules are loaded.
_UNTIL_FIRST_STEP = """
import json, sys, time
from phi3v.training import train, trainer

def stop(self, model, inputs, *args):
    print("\\n" + json.dumps([time.process_time(), sorted(sys.modules)]))
    sys.exit(0)

trainer.Phi3VTrainer.training_step = stop
train.main(sys.argv[1:])
"""


def start_once(flags: list[str]) -> tuple[float, list[str]]:
    """Start a run of `phi3v train` with these flags in a process of its own.

    Returns:
        CPU seconds until its first step, and the names of the modules it has loaded by then.
    """
    command = [sys.executable, "-c", _UNTIL_FIRST_STEP, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return seconds, modules


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Start runs on four pictures; the lowest and the middle of their CPU seconds."""
    records = []
    for number in range(4):
        Image.new("RGB", (336, 336), (60 * number, 90, 120)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Grey."}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    base = write_tiny_checkpoint(folder / "base")
    seconds = []
    for number in range(rounds):
        names = {
            "model_id": base,
            "data_path": folder / "data.json",
            "image_folder": folder,
            "output_dir": folder / f"run-{number}",
            "lora_enable": True,
            "report_to": "none",
        }
        flags = [word for name, value in names.items() for word in (f"--{name}", str(value))]
        seconds.append(start_once(flags)[0])
    return {"least_cpu_s": min(seconds), "median_cpu_s": statistics.median(seconds)}


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
