"""The Slurm script: a warned job saves, ends and is queued again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.training.launching import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Like Slurm, it signals the first process of the machine only.
SRUN = 'shift; "$@" & one=$!; trap "kill -USR1 $one" USR1; until wait $one; status=$?; '
SRUN += "! kill -0 $one 2>/dev/null; do :; done; exit $status"
TOOLS = {"srun": SRUN, "scontrol": 'echo "$@" >> asked; echo 127.0.0.1'}


def test_warned_job_saves_and_is_queued_again(flags: list[str], tmp_path: Path) -> None:
    tools, out = tmp_path / "tools", tmp_path / "out"
    tools.mkdir()
    for name, body in TOOLS.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    words = [*flags, "--bf16", "False", "--max_steps", "5000", "--save_strategy", "steps"]
    words += ["--save_steps", "2", "--save_total_limit", "1", "--output_dir", str(out)]
    job = subprocess.Popen(
        ["bash", str(ROOT / "scripts/slurm.sh"), str(ROOT / "scripts/finetune_lora.sh"), *words],
        cwd=tmp_path,
        env=environment(
            SLURM_JOB_NODELIST="one",
            SLURM_NNODES="1",
            SLURM_JOB_ID="4711",
            NUM_PROCESSES="1",
            PATH=f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoint-*")) and job.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(job.pid, signal.SIGUSR1)
    output, _ = job.communicate(timeout=200)
    assert job.returncode != 0 and "interrupted by SIGUSR1 after step" in output, output
    assert "requeue 4711" in (tmp_path / "asked").read_text(), output
    assert not (out / "unfinished").exists()
