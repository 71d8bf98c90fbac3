"""CPU time and bytes of one picture on its way to the trainer, against the published pipeline.

Both arms read the same JPEG files in turn, in one process and on one thread: ours makes uint8 crops
(`media.load_image`, `Phi3VImageProcessor.prepare`); the published one, written plainly, normalises
in float32, makes the global view and fills up with zero crops. Prints one JSON object.

    python benchmarks/loader.py --rounds 20
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phi3v.data.media import load_image
from phi3v.model.crops import plan_crops
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.vision import IMAGE_MEAN, IMAGE_STD, crops_from_compact, image_grids

CROP = 336


def published(path: Path, num_crops: int) -> torch.Tensor:
    """Do what the published processor does with one picture: float32 (num_crops + 1, 3, S, S)."""
    picture = Image.open(path).convert("RGB")
    plan = plan_crops(picture.width, picture.height, num_crops)
    transpose = Image.Transpose.TRANSPOSE
    if plan.transposed:
        picture = picture.transpose(transpose)
    long, short = sorted((plan.resized_width, plan.resized_height), reverse=True)
    picture = picture.resize((long, short), Image.Resampling.BILINEAR)
    full = Image.new("RGB", (long, -(-short // CROP) * CROP), (255, 255, 255))
    full.paste(picture, (0, max(plan.pad_left, plan.pad_top)))
    if plan.transposed:
        full = full.transpose(transpose)
    # ToTensor and Normalize of torchvision.
    pixels = torch.from_numpy(np.array(full)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    pixels = pixels.sub(mean).div(std)
    overview = torch.nn.functional.interpolate(
        pixels[None], size=(CROP, CROP), mode="bicubic", align_corners=False
    )
    rows, columns = plan.grid.rows, plan.grid.columns
    tiles = pixels.reshape(1, 3, rows, CROP, columns, CROP).permute(0, 2, 4, 1, 3, 5)
    crops = torch.cat([overview, tiles.reshape(-1, 3, CROP, CROP)])
    missing = torch.zeros(num_crops + 1 - len(crops), 3, CROP, CROP)
    # The processor stacks the pictures of a call, however few they are.
    return torch.stack([torch.cat([crops, missing])])[0]


def ours(path: Path, processor: Phi3VImageProcessor) -> tuple[np.ndarray, tuple[int, int]]:
    """Read one picture as training does: uint8 crops and the padded size."""
    return processor.prepare(load_image(path))


def write_pictures(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """Write JPEG files with the detail of photographs: noise of several scales."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        layers = [
            Image.fromarray(
                rng.integers(0, 256, (height // scale, width // scale, 3), dtype=np.uint8)
            ).resize((width, height), Image.Resampling.BICUBIC)
            for scale in (64, 16, 4)
        ]
        picture = Image.blend(Image.blend(layers[0], layers[1], 0.3), layers[2], 0.15)
        paths.append(folder / f"{number}.jpg")
        picture.save(paths[-1], quality=90)
    return paths


def measure(arms: dict[str, Callable[[Path], Any]], paths: list[Path], rounds: int) -> Any:
    """Run the arms in turn on every file; CPU milliseconds of each, in order."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for path in paths:
            for name, arm in arms.items():
                start = time.process_time()
                arm(path)
                times[name].append(1e3 * (time.process_time() - start))
    return times


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--height", type=int, default=1008)
    parser.add_argument("--num_crops", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=4)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    processor = Phi3VImageProcessor(num_crops=options.num_crops)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), options.width, options.height, options.pictures)
        identical = True
        for path in paths:
            crops, size = ours(path, processor)
            expected = published(path, options.num_crops)
            made = crops_from_compact(torch.from_numpy(crops), image_grids([size], CROP))
            identical &= torch.equal(made, expected[: len(made)])
        arms: dict[str, Callable[[Path], Any]] = {
            "published": lambda path: published(path, options.num_crops),
            "ours": lambda path: ours(path, processor),
        }
        times = measure(arms, paths, options.rounds)
        file_bytes = sum(path.stat().st_size for path in paths) // len(paths)
    cpu = {name: round(statistics.median(values), 2) for name, values in times.items()}
    report = {
        "benchmark": "loader",
        "picture": f"{options.width}x{options.height} JPEG of {file_bytes} bytes",
        "num_crops": options.num_crops,
        "cpu_ms_median": cpu,
        "cpu_ms_least": {name: round(min(values), 2) for name, values in times.items()},
        "cpu_ratio": round(cpu["published"] / cpu["ours"], 2),
        "megabytes": {
            "published": round(expected.nbytes / 1e6, 2),
            "ours": round(crops.nbytes / 1e6, 2),
        },
        "bit_identical": identical,
        "pictures_timed": len(times["ours"]),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=2))
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
