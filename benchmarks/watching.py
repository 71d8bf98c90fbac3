"""Watches a run and everything that it starts: memory, handles, threads, processes.

All processes of a run bear a mark in their environment, so that none is overlooked: not those that
its launcher started, and not one whose parent is gone.
"""

import contextlib
import os
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "PHI3V_SOAK"
FILES = "checkpoint and temporary files"
# What is watched, and the growth in 1,000 steps up to which it counts as flat. Tensors on their way
# from a worker are open files, so their number swings; one kept by each evaluation would be 10. A
# picture of a step, kept, would be 9 MB and more.
SERIES = {
    "memory of all processes, MB": 8.0,
    "memory of the trainers, MB": 8.0,
    "open files and sockets": 8.0,
    "threads": 1.0,
    "processes": 1.0,
    FILES: 1.0,
}
_MOST_SECONDS_TO_END = 60
Sample = dict[str, float]


@dataclass(frozen=True)
class Watched:
    """What was seen of a run.

    Attributes:
        status: Of its exit.
        samples: At most one for each step that it reported: the names of `SERIES`, and ``step``.
        leftovers: Command lines of processes that were still there a minute after its end.
        shared: Files of its processes that it left in the shared memory.
        output: The end of what it printed.
    """

    status: int
    samples: list[Sample]
    leftovers: list[str]
    shared: list[str]
    output: str


def watch(
    command: Sequence[str],
    step_of: Callable[[str], int | None],
    count_files: Callable[[], int],
    **environment: str,
) -> Watched:
    """Run a command to its end and take samples as it reports steps.

    Args:
        command: The program and its words.
        step_of: Reads a line of its output: the step that it reports, or None.
        count_files: Counts those of its files whose number shall stay.
        **environment: Added to that of this process.
    """
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        list(command),
        env=os.environ | environment | {MARK: mark, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    samples: list[Sample] = []
    seen: set[int] = set()
    steps, last = [0], deque[str](maxlen=60)

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                last.append(line)
                step = step_of(line)
                if step is not None:
                    steps.append(step)

    # The run never waits for a sample, and a sample is never of a step long past.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while process.poll() is None:
        newest = steps[-1]
        if newest == (samples[-1]["step"] if samples else 0):
            time.sleep(0.02)
            continue
        found = find_processes(mark)
        seen |= set(found)
        samples.append({"step": newest, **look_at(found)})
        samples[-1][FILES] = count_files()
    deadline = time.monotonic() + _MOST_SECONDS_TO_END
    while (found := find_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    leftovers = [" ".join(command) for command in found.values()]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    reader.join()
    names = os.listdir("/dev/shm") if Path("/dev/shm").is_dir() else []
    # PyTorch names them by the process that made them.
    shared = [name for name in names if any(f"_{pid}_" in name for pid in seen)]
    return Watched(process.returncode, samples, leftovers, shared, "".join(last))


def find_processes(mark: str) -> dict[int, list[str]]:
    """Find the processes that bear a mark; their command lines by id."""
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process may end at any moment, or belong to somebody else.
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found[int(entry.name)] = [word.decode(errors="replace") for word in words if word]
    return found


def look_at(found: dict[int, list[str]]) -> Sample:
    """Add up what these processes hold; no files are counted.

    A process is a trainer unless it was forked by one: a data loader's worker has the command line
    of its parent. Memory that processes share is counted once for all of them, but fully for each
    trainer; pages of files are not counted, which the system drops and reads again as it likes.
    Ended children that nobody has asked for their status count as processes.
    """
    sample = dict.fromkeys(SERIES, 0.0)
    for pid, command in found.items():
        with contextlib.suppress(OSError):
            fields = _read_fields(Path(f"/proc/{pid}/status"))
            shares = _read_fields(Path(f"/proc/{pid}/smaps_rollup"))
            handles = len(os.listdir(f"/proc/{pid}/fd"))
            sample["memory of all processes, MB"] += _megabytes(shares, "Pss_")
            if found.get(fields["PPid"]) != command:
                sample["memory of the trainers, MB"] += _megabytes(fields, "Rss")
            sample["open files and sockets"] += handles
            sample["threads"] += fields["Threads"]
            sample["processes"] += 1
    sample["processes"] += _count_ended(set(found))
    return sample


def _read_fields(file: Path) -> dict[str, int]:
    fields = {}
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields


def _megabytes(fields: dict[str, int], kind: str) -> float:
    return (fields[f"{kind}Anon"] + fields[f"{kind}Shmem"]) * 1024 / 1e6


def _count_ended(parents: set[int]) -> int:
    """Count the children of processes that have ended and were not waited for."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                count += state == "Z" and int(parent) in parents
    return count
