"""Kill training, merging and indexing at random moments, and check that nothing is lost.

    python -m tools.kill_runs --runs 60 --seed 1
    python -m tools.kill_runs --runs 10 --deepspeed scripts/zero3.json

Runs of a tiny model on the CPU, with one and with two processes, are killed by SIGKILL: half of the
kills come at a random time, half before a random step on the disk. A killed run is started again by
the same command until it is finished; then its losses, norms of gradients, learning rates and
weights must be those of an unbroken run, bit for bit. After every kill, whatever bears the name of
a checkpoint must be readable. Merging and indexing are killed in between. With --cache_vision, the
killed runs fill a cache of features that the unbroken ones do without. DeepSpeed
compiles an operator the first time, which takes minutes. Status 1: a fault.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from tests.training.killing import (
    Work,
    check_checkpoints,
    check_entries,
    check_same_run,
    child,
    end_of,
    kill_at_step,
)
from tests.training.launching import compile_deepspeed_op, write_mixed_data

from phi3v.data.records import read_record
from phi3v.data.sources import open_records
from phi3v.model.durable import find_damage
from phi3v.model.tiny import write_tiny_checkpoint
from phi3v.training import train
from phi3v.training.checkpoints import UNFINISHED
from phi3v.training.merge import merge

STEPS = 12
# About so many steps on the disk belong to saving six times.
DISK_STEPS = 400
# So many fill a cache of features and read from it.
CACHE_STEPS = 40


def cache_of(output: Path) -> Path:
    """Name the folder of features of a run, beside its output."""
    return output.with_suffix(".cache")


class Harness:
    """A folder with a tiny base and data, and runs over them.

    Args:
        folder: Scratch folder.
        seed: Decides the moments.
        caches: Freeze the tower, and keep its features in all runs but the unbroken ones.
    """

    def __init__(self, folder: Path, seed: int, *, caches: bool = False) -> None:
        self.folder = folder
        self.more: list[str] = []  # flags of all runs
        self.caches = caches
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.base = write_tiny_checkpoint(
            folder / "base", crop_size=56, hidden_size=64, vision_hidden_size=32, num_crops=4
        )
        self.data = write_mixed_data(folder)
        self.seconds: dict[int, float] = {}

    def flags(self, output: Path) -> list[str]:
        """Flags of a run that shuffles, drops out, saves every second step and keeps two."""
        more = ["--freeze_vision_tower", "True"] if self.caches else []
        if self.caches and not output.name.startswith("unbroken"):
            more += ["--cache_vision", str(cache_of(output))]
        return [
            *more,
            *("--model_id", str(self.base), "--data_path", str(self.data)),
            *("--image_folder", str(self.folder), "--num_crops", "2", "--max_num_frames", "2"),
            *("--use_cpu", "True", "--dataloader_num_workers", "0", "--report_to", "none"),
            *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1"),
            *("--max_steps", str(STEPS), "--learning_rate", "1e-3", "--disable_tqdm", "True"),
            *("--lora_enable", "True", "--lora_rank", "4", "--lora_dropout", "0.1"),
            *("--lora_namespan_exclude", "['lm_head', 'embed_tokens']"),
            *("--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2"),
            *("--output_dir", str(output), "--resume_from_checkpoint", "auto", *self.more),
        ]

    def start(self, output: Path, processes: int, before: Work) -> list[int]:
        """Start all processes of a run."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = []
        for rank in range(processes):
            own = place | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
            started.append(
                child(
                    lambda: train.main(self.flags(output)),
                    output.with_suffix(".log"),
                    {name: str(value) for name, value in own.items()},
                    before if rank == 0 else int,
                )
            )
        return started

    def run(self, output: Path, processes: int, moment: float | tuple[Path, int] | None) -> bool:
        """Run, and kill all processes after a time, or when the first does a step on the disk.

        Returns:
            Whether the run was finished.
        """
        at_disk = moment if isinstance(moment, tuple) else (output, 0)
        ids = self.start(output, processes, lambda: kill_at_step(*at_disk))
        end = time.monotonic() + (moment if isinstance(moment, float) else 300)
        statuses: dict[int, int] = {}
        while len(statuses) < processes:
            for one in set(ids) - set(statuses):
                found, status = os.waitpid(one, os.WNOHANG)
                if found:
                    statuses[one] = status
            if time.monotonic() > end or any(statuses.values()):
                # As a launcher does when one process has ended badly.
                for one in set(ids) - set(statuses):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.005)
        if moment is None and time.monotonic() > end:
            raise AssertionError(f"{output}: an unbroken run hangs")
        odd = [s for s in statuses.values() if s not in (0, signal.SIGKILL)]
        if odd and signal.SIGKILL not in statuses.values():
            raise AssertionError(f"{output}: status {odd}:\n{end_of(output.with_suffix('.log'))}")
        return not any(statuses.values())

    def unbroken(self, processes: int) -> Path:
        """Make the run that all others are compared with; how long it takes is kept."""
        output = self.folder / f"unbroken{processes}"
        if not output.exists():
            started = time.monotonic()
            if not self.run(output, processes, None):
                raise AssertionError(f"{output} failed:\n{end_of(output.with_suffix('.log'))}")
            self.seconds[processes] = time.monotonic() - started
        return output

    def kill_training(self, output: Path, processes: int) -> bool:
        """Kill a run once, or let it finish and compare; returns whether it was finished."""
        expected = self.unbroken(processes)
        moment: float | tuple[Path, int] = self.random.uniform(0.05, self.seconds[processes])
        if self.random.random() < 0.5:
            moment = (output, self.random.randint(1, DISK_STEPS))
            if self.caches and self.random.random() < 0.5:
                moment = (cache_of(output), self.random.randint(1, CACHE_STEPS))
        finished = self.run(output, processes, moment)
        check_checkpoints(output)
        check_entries(cache_of(output))
        if finished:
            check_same_run(output, expected)
            shutil.rmtree(output)
            shutil.rmtree(cache_of(output), ignore_errors=True)
            return True
        kind = "before a step on the disk" if isinstance(moment, tuple) else "at a time"
        saving = "saving" if (output / UNFINISHED).exists() else "otherwise"
        if isinstance(moment, tuple) and moment[0] != output:
            saving = "storing or reading features"
        self.counts[f"{processes} processes, {kind}, {saving}"] += 1
        return False

    def kill_merge(self) -> None:
        """Kill a merge over an older one: the target is absent, or one of both, whole."""
        adapter, target = self.unbroken(1), self.folder / "merged"
        self._kill(lambda: merge(adapter, target, overwrite=True), target)
        if target.exists() and find_damage(target, digests=True):
            raise AssertionError(f"{target} is damaged")
        merge(adapter, target, overwrite=True)
        self.counts["merging"] += 1

    def kill_index(self) -> None:
        """Kill the first reading of a data file; the next one reads all of it."""
        index = self.data.with_name(f".{self.data.name}.phi3v-index")
        index.unlink(missing_ok=True)
        self._kill(lambda: len(open_records(self.data)), index)
        records = json.loads(self.data.read_text(encoding="utf-8"))
        source = open_records(self.data)
        read = [read_record(source, number).id for number in range(len(source))]
        if read != [one["id"] for one in records]:
            raise AssertionError("the index gives other records")
        self.counts["indexing"] += 1

    def _kill(self, work: Work, target: Path) -> None:
        step = self.random.randint(1, 40)
        log = self.folder / "small.log"

        def quiet() -> int:
            work()
            return 0

        one = child(quiet, log, {}, lambda: kill_at_step(target.parent, step))
        status = os.waitpid(one, 0)[1]
        if status not in (0, signal.SIGKILL):
            raise AssertionError(f"{target}: status {status}:\n{end_of(log)}")


def main() -> int:
    """Kill so often, then say where it happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=60, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of a run")
    parser.add_argument("--cache_vision", action="store_true", help="keep features of a tower")
    parser.add_argument("--deepspeed", help="configuration of DeepSpeed, for two processes")
    parser.add_argument("--folder", type=Path, help="scratch folder; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kills = finished = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        harness = Harness(Path(folder), arguments.seed, caches=arguments.cache_vision)
        if arguments.deepspeed:
            harness.more, arguments.processes = ["--deepspeed", arguments.deepspeed], [2]
            compile_deepspeed_op()
        while kills < arguments.runs:
            processes = arguments.processes[finished % len(arguments.processes)]
            output = Path(folder) / f"run{finished}"
            is_finished = harness.kill_training(output, processes)
            finished += is_finished
            kills += not is_finished
            if not harness.more and harness.random.random() < 0.2:
                harness.kill_merge()
                harness.kill_index()
    for place, count in sorted(harness.counts.items()):
        print(f"{count:4} killed {place}")
    print(f"{kills} kills of training, {finished} runs finished: all equal the unbroken ones")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AssertionError as fault:
        print(f"FAULT: {fault}", file=sys.stderr)
        sys.exit(1)
