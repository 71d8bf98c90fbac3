"""Measures training steps and answers with weights of the published sizes on one GPU.

    python -m benchmarks.gpu --out output/gpu

Each row runs in a fresh process, rows take turns, and the medians over the rounds are shown. Prints
the table of docs/performance.md and writes `gpu.json` and `gpu.md`. What was not measured is empty.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import run_module, say
from benchmarks.gpu_rows import ANSWERS, SAME, STEPS, Answers, Row
from benchmarks.models import SIZES
from phi3v.training.plan import GPUS

# Of losses and norms of gradients in bfloat16, relative.
TOLERANCE = 0.03
Result = dict[str, Any]
_HEAD = (
    "| run | samples/s | tokens/s | MFU | HFU | peak GB | asked on one H100 |\n"
    "|---|---|---|---|---|---|---|"
)


def peak_of(name: str) -> float | None:
    """Find the dense bfloat16 operations a second of a GPU by its name; None if unknown.

    Cards with less power share the name of the chip: those are left to ``--peak_tflops``.
    """
    plain = name.upper().replace("RTX ", "RTX")
    if any(word in plain for word in ("PCIE", "NVL", "MIG", "LAPTOP")):
        return None
    for kind, (_, teraflops) in GPUS.items():
        if re.search(rf"(?<![A-Z0-9]){kind}(?![A-Z0-9])", plain):
            return teraflops * 1e12
    return None


def describe_device(device: torch.device) -> Result:
    """Name the device and the versions that ran on it."""
    facts: Result = {"torch": torch.__version__, "name": "CPU, to try it out"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "cuda": torch.version.cuda,
        }
    return facts


def read_sensors() -> str | None:
    """Read clock, power and temperature of the first GPU; None where nvidia-smi is missing."""
    fields = "clocks.sm,power.draw,temperature.gpu,clocks_throttle_reasons.active"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def measure(
    rows: Sequence[Row | Answers], rounds: int, words: Sequence[str], *, quick: bool
) -> list[Result]:
    """Run rows in turn; the results of all rounds, in their order."""
    results = []
    for _ in range(rounds):
        for row in rows:
            try:
                result = run_module("gpu_step", row.name, *words, quick=quick)
            except RuntimeError as error:
                # One row that fails leaves the others their hour.
                result = {"row": row.name, "error": str(error)}
            result["sensors"] = None if quick else read_sensors()
            results.append(result)
            say(f"{row.name}: {describe(result)}")
    return results


def describe(result: Result) -> str:
    """Say a result in a few words."""
    if "error" in result:
        return f"FAILED: {result['error']}"
    if result.get("out_of_memory"):
        return "does not fit"
    rates = [f"{result[name]:.2f} {name}/s" for name in ("samples", "tokens") if result.get(name)]
    return ", ".join([*rates, f"{result['peak_gb']:.1f} GB"])


def disagreements(results: Sequence[Result]) -> list[str]:
    """Name the pairs of rows whose steps on the same samples differ in loss or gradients."""
    void = []
    for pair in SAME:
        runs = [one for one in results if one["row"] in pair and "loss" in one]
        for field in ("loss", "grad_norm"):
            values = [run[field] for run in runs]
            if values and max(values) - min(values) > TOLERANCE * max(map(abs, values)):
                void.append(f"{' and '.join(pair)}: {field} {min(values)} to {max(values)}")
    return void


def format_table(results: Sequence[Result], peak: float | None) -> str:
    """Write the table in Markdown.

    Args:
        results: Of `measure`; rows without one stay empty.
        peak: Dense bfloat16 operations a second of the GPU; without it there is no MFU.
    """
    lines = [_HEAD]
    for row in (*STEPS, *ANSWERS):
        own = [one for one in results if one["row"] == row.name]
        lines.append(f"| {row.name} | {' | '.join(_cells(own, peak))} | {_asked(row)} |")
    return "\n".join(lines)


def _cells(runs: Sequence[Result], peak: float | None) -> list[str]:
    if not runs:
        return [""] * 5
    if any("error" in run for run in runs):
        return ["failed", "", "", "", ""]
    if any(run.get("out_of_memory") for run in runs):
        return ["does not fit", "", "", "", ""]

    def middle(field: str) -> float:
        return statistics.median(run[field] for run in runs)

    memory = f"{middle('peak_gb'):.1f}"
    if any(run["tokens"] is None for run in runs):
        return ["", "", "", "", memory]
    if "samples" not in runs[0]:
        return ["", f"{middle('tokens'):,.0f}", "", "", memory]
    used = ["", ""]
    if peak:
        share = middle("flops") / peak
        used = [f"{share:.1%}", f"{share * middle('executed_over_needed'):.1%}"]
    return [f"{middle('samples'):.2f}", f"{middle('tokens'):,.0f}", *used, memory]


def _asked(row: Row | Answers) -> str:
    if isinstance(row, Answers):
        return f"{row.asked:,g} tokens/s" if row.asked else ""
    parts = [f"{row.asked:g} samples/s"] if row.asked else []
    parts += [f"{row.asked_gb:g} GB"] if row.asked_gb else []
    return ", ".join(parts)


def main(argv: list[str]) -> int:
    """Measure, write, print.

    Returns:
        0; 1 when a row fails or steps that should agree do not; 2 without a GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [row.name for row in (*STEPS, *ANSWERS)]
    parser.add_argument("--out", type=Path, default=Path("output/gpu"), help="folder to write")
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", help="only these")
    parser.add_argument("--rounds", type=int, default=3, help="of each row")
    parser.add_argument("--steps", type=int, default=50, help="measured in a round")
    parser.add_argument("--warmup", type=int, default=20, help="steps before them")
    parser.add_argument("--peak_tflops", type=float, help="dense bfloat16 of the GPU")
    parser.add_argument("--list", action="store_true", help="print the rows, measure nothing")
    # To try everything out on a CPU.
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=SIZES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(names))
        return 0
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"benchmarks.gpu: PyTorch {torch.__version__} finds no CUDA device; run this part on a "
            "machine with an NVIDIA GPU (the rest of the benchmark, make bench, needs none)",
            file=sys.stderr,
        )
        return 2
    facts = describe_device(device)
    peak = options.peak_tflops * 1e12 if options.peak_tflops else peak_of(facts["name"])
    if peak is None and device.type == "cuda":
        say(f"peak of {facts['name']} is not known: no MFU; give it as --peak_tflops")
    words = ["--steps", str(options.steps), "--warmup", str(options.warmup)]
    quick = device.type == "cpu"
    if quick:
        small = ("--num_crops", "1", "--pack_tokens", "1024", "--tokens", "4")
        words += ["--device", "cpu", "--model", options.model or "quick", *small]
    rows = [row for row in (*STEPS, *ANSWERS) if row.name in (options.rows or names)]
    results = measure(rows, options.rounds, words, quick=quick)
    void = disagreements(results)
    report = {"device": facts, "peak_flops": peak, "void": void, "results": results}
    table = f"{facts['name']}, PyTorch {facts['torch']}\n\n{format_table(results, peak)}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "gpu.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    for line in void:
        print(f"VOID: {line}")
    return int(bool(void) or any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
