"""A long run of `phi3v train` on a tiny model: nothing that it holds may grow.

    python -m benchmarks.soak --steps 2000 --processes 1 --out output/soak

The run trains adapters on pictures, several pictures, videos and text, with workers that read them,
evaluates and answers questions between steps, and keeps the two newest checkpoints. Prints a table,
writes `soak.json` and `soak.svg`, and ends with status 1 unless everything is flat and nothing is
left behind.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from benchmarks.charts import soak_chart
from benchmarks.growth import summarize
from benchmarks.watching import SERIES, Watched, watch
from phi3v.model.tiny import write_tiny_checkpoint

_ROOT = Path(__file__).resolve().parent.parent


def write_data(folder: Path, count: int) -> None:
    """Write records of every kind in turn: text, a picture, two pictures, a video."""
    rng = np.random.default_rng(0)
    for number in range(count // 4):
        size = int(rng.integers(40, 300)), int(rng.integers(40, 300))
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{number}.jpg")
        _write_clip(folder / f"{number}.mp4", rng)
    for name, numbers in {"data": range(count), "eval": range(8)}.items():
        records = [_record(number, count // 4) for number in numbers]
        (folder / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")


def _record(number: int, num_pictures: int) -> dict[str, Any]:
    own = number // 4
    names = [f"{own}.jpg", f"{(own + 1) % num_pictures}.jpg"]
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("", {}),
        ("<image>\n", {"image": names[0]}),
        ("<image>\n<image>\n", {"image": names}),
        ("<video>\n", {"video": f"{own}.mp4"}),
    ]
    tags, media = kinds[number % 4]
    turns = [
        {"from": "human", "value": f"{tags}What is number {number}?"},
        {"from": "gpt", "value": f"It is {'nothing ' * (own % 5)}of note."},
    ]
    return {"id": str(number), "conversations": turns, **media}


def _write_clip(path: Path, rng: np.random.Generator) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(6):
            pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def steps_a_sample(steps: int) -> int:
    """Count the steps between two samples of a run: 400 samples, or one for each step."""
    return max(steps // 400, 1)


def flags(folder: Path, steps: int, workers: int) -> list[str]:
    """Give the words behind `phi3v train`; with 20 evaluations, each with a checkpoint."""
    every = max(steps // 20, 1)
    values = {
        "model_id": folder / "base",
        "data_path": folder / "data.json",
        "eval_data_path": folder / "eval.json",
        "image_folder": folder,
        "output_dir": folder / "run",
        "use_cpu": True,
        "lora_enable": True,
        "freeze_vision_tower": True,
        "lora_rank": 4,
        "lora_namespan_exclude": "['lm_head', 'embed_tokens']",
        "num_crops": 2,
        "max_num_frames": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": workers,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "eval_strategy": "steps",
        "eval_steps": every,
        "eval_generate": True,
        "eval_generate_samples": 4,
        "eval_generate_tokens": 4,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "logging_steps": steps_a_sample(steps),
        "logging_dir": folder / "logs",
        "disable_tqdm": True,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def training_command(processes: int) -> list[str]:
    """Give the words that start `phi3v train` on so many processes."""
    if processes == 1:
        return [sys.executable, "-m", "phi3v", "train"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(processes), "-m", "phi3v.training.train"]


class StepReader:
    """Reads the step from the lines that training logs: one with a loss for every few steps."""

    def __init__(self, steps_a_line: int) -> None:
        self.step = 0
        self._steps_a_line = steps_a_line
        self.evaluations = 0

    def __call__(self, line: str) -> int | None:
        """Return the step that a line reports."""
        self.evaluations += "'eval_loss'" in line
        if "'loss'" not in line:
            return None
        self.step += self._steps_a_line
        return self.step


def soak(steps: int, processes: int, workers: int) -> dict[str, Any]:
    """Run a training and watch it.

    Args:
        steps: Of the optimizer.
        processes: That train together.
        workers: Of the data loader of each.

    Returns:
        What the JSON file holds.

    Raises:
        RuntimeError: The run failed or made other steps; the message holds the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        # Workers start anew for each pass over the data, 48 steps.
        write_data(folder, 96 * processes)
        write_tiny_checkpoint(
            folder / "base", crop_size=56, hidden_size=64, vision_hidden_size=32, num_crops=2
        )
        (folder / "tmp").mkdir()
        path = f"{_ROOT / 'src'}{os.pathsep}{_ROOT}"
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TMPDIR": str(folder / "tmp")}
        reader, started = StepReader(steps_a_sample(steps)), time.monotonic()
        words = [*training_command(processes), *flags(folder, steps, workers)]

        def count_files() -> int:
            checkpoints = (folder / "run").glob("checkpoint-*/**/*")
            return sum(1 for _ in checkpoints) + sum(1 for _ in (folder / "tmp").rglob("*"))

        watched = watch(words, reader, count_files, **environment)
        minutes = (time.monotonic() - started) / 60
        if watched.status or not 0 <= steps - reader.step < steps_a_sample(steps):
            raise RuntimeError(
                f"the run ended with status {watched.status} after step {reader.step} of {steps}:\n"
                + watched.output[-4000:]
            )
        temporary = sorted(file.name for file in (folder / "tmp").rglob("*") if file.is_file())
        checkpoints = sorted(one.name for one in (folder / "run").glob("checkpoint-*"))
    return _report(
        watched,
        steps=steps,
        processes=processes,
        workers=workers,
        evaluations=reader.evaluations,
        minutes=minutes,
        temporary=temporary,
        checkpoints=checkpoints,
    )


def _report(watched: Watched, **facts: Any) -> dict[str, Any]:
    rows = summarize(watched.samples, SERIES)
    left = watched.leftovers or watched.shared or facts["temporary"]
    flat = all(row["verdict"] == "flat" for row in rows)
    return {
        **facts,
        "rows": rows,
        "leftover_processes": watched.leftovers,
        "leftover_shared_memory": watched.shared,
        "passed": flat and not left,
        "samples": watched.samples,
    }


def format_report(report: dict[str, Any]) -> str:
    """Lay the table out for a terminal of 80 columns."""
    lines = [
        f"{report['steps']:,} steps, processes: {report['processes']}, workers of each: "
        f"{report['workers']}, evaluations: {report['evaluations']}",
        f"checkpoints at the end: {', '.join(report['checkpoints'])}",
        "",
        "medians                          start   half    end  growth in 1,000 steps",
    ]
    for row in report["rows"]:
        values = "".join(f"{row[part]:>7.1f}" for part in ("start", "half", "end"))
        span = f"{row['slope']:+.2f} ± {row['error']:.2f}"
        lines.append(f"{row['name']:<31}{values}  {span:<17} {row['verdict']}")
    lines.append("")
    for label, field in (
        ("processes left behind", "leftover_processes"),
        ("files left in shared memory", "leftover_shared_memory"),
        ("files left in the temporary folder", "temporary"),
    ):
        lines.append(f"{label}: {', '.join(report[field]) or 'none'}")
    lines.append("passed" if report["passed"] else "FAILED")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run, write, print.

    Returns:
        0 when everything is flat and nothing is left behind, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="of the optimizer")
    parser.add_argument("--processes", type=int, default=1, help="that train together by gloo")
    parser.add_argument("--workers", type=int, default=2, help="of the data loader of each process")
    parser.add_argument("--out", type=Path, default=Path("output/soak"), help="folder to write")
    options = parser.parse_args(argv)
    report = soak(options.steps, options.processes, options.workers)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "soak.svg").write_text(soak_chart(report), encoding="utf-8")
    print(format_report(report))
    return int(not report["passed"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
