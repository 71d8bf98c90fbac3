"""Runs all measurements in turn, prints one table, writes one JSON file and draws plots.

    python -m benchmarks --out output/bench

Each step is measured in a fresh process, the arms of a scenario take turns, and a scenario is void
when its arms do not agree in loss and norm of the gradients. CPU seconds on one thread.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.charts import draw_all
from benchmarks.report import agreement, bars, format_report

TOLERANCE = 1e-4


class Scenario(NamedTuple):
    """A step that all arms make on the same samples; the first ``rare`` round has all arms.

    Where ``frees`` is set, the allocator of each process gives back what is freed at once: the C
    library's own keeps holes that no tensor is in, and of other sizes in every arm.
    """

    name: str
    method: str
    model: str
    batch: str
    arms: tuple[str, ...]
    rare_arms: tuple[str, ...] = ()
    rounds: int | None = None
    frees: bool = False


SCENARIOS = (
    Scenario(
        "LoRA, mixed batch",
        "lora",
        "fm-tiny",
        "mixed-4",
        ("original", "hf", "ours"),
        ("original-sdpa", "ours-selective", "ours-full"),
    ),
    Scenario(
        "full, mixed batch",
        "full",
        "fm-tiny",
        "mixed-4",
        ("original", "hf", "ours"),
        ("original-sdpa",),
    ),
    Scenario(
        "LoRA, 4 questions about a picture", "lora", "fm-tiny", "questions-4", ("original", "ours")
    ),
    Scenario(
        "LoRA, vocabulary 32064",
        "lora",
        "mem-V",
        "mixed-4",
        ("original", "ours", "ours-selective", "ours-full"),
        rounds=1,
        frees=True,
    ),
)


def run_module(module: str, *words: str, quick: bool = False, frees: bool = False) -> Any:
    """Run a module in a process of its own on one thread; what it printed, read as JSON.

    Args:
        module: One of this package.
        words: Its command line.
        quick: Run it in this process: no code is loaded again, and times mean less.
        frees: Let the allocator give back what is freed at once.

    Raises:
        RuntimeError: It failed; the message holds the end of what it said.
    """
    if quick:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            import_module(f"benchmarks.{module}").main(list(words))
        return _read(printed.getvalue())
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if frees:
        settings["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *words],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"benchmarks.{module} {' '.join(words)}: {done.stderr[-2000:]}")
    return _read(done.stdout)


def _read(printed: str) -> Any:
    # A library may have written lines before the result.
    lines = printed.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith(("{", "[{")))
    return json.loads("\n".join(lines[first:]))


def measure_steps(rounds: int, *, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Measure every scenario; results by its name, in the order of the runs."""
    results: dict[str, list[dict[str, Any]]] = {}
    for scenario in SCENARIOS:
        results[scenario.name] = []
        model, batch, crops = scenario.model, scenario.batch, "16"
        more = ()
        if quick:
            batch = "mixed-2" if batch.startswith("mixed") else batch
            more = ("--vocabulary", "32064") if model == "mem-V" else ()
            model, crops = "quick", "4"
        for turn in range(min(rounds, scenario.rounds or rounds)):
            for arm in scenario.arms + (scenario.rare_arms if turn == 0 else ()):
                words = (arm, scenario.method, "--model", model, "--batch", batch)
                words = (*words, "--num_crops", crops, *more)
                one = run_module("step", *words, quick=quick, frees=scenario.frees)
                results[scenario.name].append(one)
                say(f"{scenario.name}: {arm} {one['cpu_s']:.1f} s, {one['peak_mb']:.0f} MB")
    return results


def measure_all(rounds: int, *, quick: bool) -> dict[str, Any]:
    """Measure everything that the report shows."""
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "rounds": rounds,
        "quick": quick,
        "steps": measure_steps(rounds, quick=quick),
    }
    say("counting operations, waits, bytes")
    report["counters"] = run_module("counters", *(["--quick"] if quick else []), quick=quick)
    report["scaling"] = {}
    for arm in ("original", "ours"):
        words = ("--points", "2", "--model", "quick") if quick else ()
        if arm == "original" and not quick:
            words = ("--points", "3")
        say(f"scaling: {arm}")
        report["scaling"][arm] = run_module("scaling", arm, *words, quick=quick)
    say("planning packs")
    samples = ("--samples", "10000") if quick else ()
    report["packing"] = run_module("scaling", "packing", *samples, quick=quick)
    for crops in ("16", "4"):
        say(f"loader, {crops} crops")
        words = ("--num_crops", crops, "--rounds", "1" if quick else "5", "--pictures", "2")
        report[f"loader-{crops}"] = run_module("loader", *words, quick=quick)
    say("merge")
    report["merge"] = run_module(
        "merging", *(["--megabytes", "40", "--rounds", "1"] if quick else []), quick=quick
    )
    return report


def say(line: str) -> None:
    """Tell on the terminal what goes on."""
    print(f"  {line}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Measure, write, print.

    Returns:
        1 when a scenario is void, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("output/bench"), help="folder to write")
    parser.add_argument("--rounds", type=int, default=3, help="of each step")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to try it out")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    report = measure_all(1 if options.quick else options.rounds, quick=options.quick)
    times = os.times()
    report["cpu_minutes"] = (
        time.process_time() - started + times.children_user + times.children_system
    ) / 60
    report["bars"] = bars(report)
    report["void"] = [name for name, runs in report["steps"].items() if agreement(runs) > TOLERANCE]
    file = options.out / "bench.json"
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for picture in draw_all(report, options.out):
        say(f"wrote {picture}")
    print(format_report(report))
    say(f"wrote {file}")
    return int(bool(report["void"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
