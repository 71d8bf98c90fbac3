"""What reading a million records costs: the first open against one parse, re-opening, memory, time.

Writes LLaVA records into a temporary folder, which is removed afterwards, and measures in processes
of its own: CPU time of the first open (which builds the index) against reading and parsing the file
once with orjson, both in turn; the time to open again; memory that is private to each of several
processes that read at random; and the time for one random record. Prints a table and JSON.

    python benchmarks/data_index.py --records 1000000
"""

import argparse
import json
import multiprocessing
import pickle
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from phi3v.data.beside import hidden_places
from phi3v.data.records import RawRecords, read_record
from phi3v.data.sources import open_records

TARGETS = {
    "first open / orjson parse (CPU)": 1.2,
    "open again (ms)": 5.0,
    "private memory of a process (MB)": 20.0,
    "one random record (us of CPU)": 20.0,
}


def write_records(path: Path, count: int) -> None:
    """Write LLaVA records of about 700 bytes, of the kind of its instruction data."""
    rng = random.Random(0)
    words = 'the a picture shows man dog bus street red "sign" größe 漢字 two people stand near it'
    sentences = [" ".join(rng.choices(words.split(), k=rng.randint(8, 60))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = []
            for turn in range(rng.choice((1, 1, 2, 3))):
                tag = "" if turn else "<image>\n"
                turns += [
                    {"from": "human", "value": tag + rng.choice(sentences)[:60]},
                    {"from": "gpt", "value": rng.choice(sentences)},
                ]
            image = f"coco/train2017/{number:012d}.jpg"
            record = {"id": f"{number:09d}", "image": image, "conversations": turns}
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
        file.write("]")


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process that has imported what this one has."""
    return gather([(work, arguments)])[0]


def gather(jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Run functions at the same time, each in a process of its own."""
    context = multiprocessing.get_context("fork")
    started = []
    for work, arguments in jobs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, work, arguments))
        process.start()
        started.append((process, receiver))
        sender.close()
    results = []
    for process, receiver in started:
        results.append(receiver.recv())
        process.join()
    return results


def _send(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(work(*arguments))


def cpu_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Measure CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    kept = work()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    del kept
    return spent


def parse(path: Path) -> tuple[float, float]:
    """Read and parse the whole file with orjson."""
    import orjson

    return cpu_of(lambda: orjson.loads(path.read_bytes()))


def first_open(path: Path) -> tuple[float, float]:
    """Open a file that has no index yet."""
    for place in hidden_places(path, "index"):
        place.unlink(missing_ok=True)
    return cpu_of(lambda: open_records(path))


def open_again(path: Path, rounds: int) -> float:
    """Open a file that has its index; median milliseconds."""
    walls = [cpu_of(lambda: open_records(path))[1] for _ in range(rounds)]
    return 1e3 * statistics.median(walls)


def private_megabytes() -> float:
    """Memory of this process that it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def read_at_random(
    pickled: bytes, seed: int, count: int, all_here: Barrier
) -> tuple[float, float, float]:
    """Read random records as a worker does, and measure while all the others still have them, too.

    Returns:
        Megabytes that became private; CPU microseconds for a raw and for a checked record.
    """
    before = private_megabytes()
    source: RawRecords = pickle.loads(pickled)
    rng = random.Random(seed)
    numbers = [rng.randrange(len(source)) for _ in range(count)]
    times = []
    for read in (source.__getitem__, lambda number: read_record(source, number)):
        start = time.process_time()
        for number in numbers:
            read(number)
        times.append(1e6 * (time.process_time() - start) / count)
    all_here.wait()
    grown = private_megabytes() - before
    all_here.wait()
    return grown, times[0], times[1]


def read_together(pickled: bytes, processes: int, reads: int) -> list[tuple[float, float, float]]:
    """Let several processes read at random at the same time."""
    all_here = multiprocessing.get_context("fork").Barrier(processes)
    return gather([(read_at_random, (pickled, seed, reads, all_here)) for seed in range(processes)])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="of first open and parse, in turn")
    parser.add_argument("--processes", type=int, default=4, help="that read at the same time")
    parser.add_argument("--reads", type=int, default=20_000, help="random records of each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.json"
        write_records(path, options.records)
        megabytes = path.stat().st_size / 1e6
        path.read_bytes()  # both arms find the file in the page cache
        arms: dict[str, list[tuple[float, float]]] = {"parse": [], "first open": []}
        for _ in range(options.rounds):
            arms["parse"].append(in_process(parse, path))
            arms["first open"].append(in_process(first_open, path))
        again = in_process(open_again, path, 20)
        source = open_records(path)
        assert len(source) == options.records
        assert source[options.records - 1]["id"] == f"{options.records - 1:09d}"
        pickled = pickle.dumps(source)
        alone, *_ = read_together(pickled, 1, options.reads)
        readers = read_together(pickled, options.processes, options.reads)
    cpu = {name: statistics.median(one[0] for one in times) for name, times in arms.items()}
    ratios = [a[0] / b[0] for a, b in zip(arms["first open"], arms["parse"], strict=True)]
    found = {
        "first open / orjson parse (CPU)": statistics.median(ratios),
        "open again (ms)": again,
        "private memory of a process (MB)": max(one[0] for one in readers),
        "one random record (us of CPU)": alone[1],
    }
    print(
        f"{options.records:,} records, {megabytes:.0f} MB; CPU seconds: ", end="", file=sys.stderr
    )
    print(", ".join(f"{name} {value:.2f}" for name, value in cpu.items()), file=sys.stderr)
    for name, value in found.items():
        held = "holds" if value <= TARGETS[name] else "MISSED"
        print(f"{name:<34} {value:>8.2f}   at most {TARGETS[name]:g}: {held}", file=sys.stderr)
    report = {
        "records": options.records,
        "megabytes": round(megabytes, 1),
        "cpu_seconds": {name: [round(one[0], 3) for one in times] for name, times in arms.items()},
        "wall_seconds": {name: [round(one[1], 3) for one in times] for name, times in arms.items()},
        "pickled_bytes": len(pickled),
        "checked_record_us": round(alone[2], 2),
        "record_us_side_by_side": [round(one[1], 2) for one in readers],
        "private_mb_alone": round(alone[0], 2),
        "private_mb": [round(one[0], 2) for one in readers],
        **{name: round(value, 3) for name, value in found.items()},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
