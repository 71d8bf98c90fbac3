"""Make the tiny base model of the demo: it reads drawn letters, and has never seen a digit.

    python tools/make_demo_base.py OUT [--num_pictures 50000] [--seed 0]

Letters are drawn from strokes with random slant, thickness and jitter, so nothing but this file is
needed. The base is trained by ``phi3v train`` from random weights, every part of it; OUT is a
folder in the published form.
"""

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps

from phi3v import load_model, load_processor
from phi3v.demo.digits import QUESTIONS, SCALE, TILE
from phi3v.model.saving import carry_code_files
from phi3v.model.tiny import write_tiny_checkpoint
from phi3v.model.tokenizer import make_small_tokenizer
from phi3v.training import train
from phi3v.training.flags import parse_arguments

Stroke = list[tuple[float, float]]

_O: Stroke = [
    (0.5, 0),
    (0.15, 0.1),
    (0, 0.5),
    (0.15, 0.9),
    (0.5, 1),
    (0.85, 0.9),
    (1, 0.5),
    (0.85, 0.1),
    (0.5, 0),
]
_P: Stroke = [(0, 1), (0, 0), (0.7, 0.02), (0.95, 0.25), (0.7, 0.5), (0, 0.52)]
_C: Stroke = [
    (0.95, 0.2),
    (0.7, 0),
    (0.3, 0),
    (0.05, 0.3),
    (0.05, 0.7),
    (0.3, 1),
    (0.7, 1),
    (0.95, 0.8),
]

# x to the right, y downwards, in a unit square.
LETTERS: dict[str, list[Stroke]] = {
    "A": [[(0, 1), (0.5, 0), (1, 1)], [(0.2, 0.6), (0.8, 0.6)]],
    "B": [
        [(0, 0), (0, 1)],
        [(0, 0), (0.7, 0.05), (0.85, 0.25), (0.7, 0.45), (0, 0.5)],
        [(0, 0.5), (0.8, 0.55), (0.95, 0.75), (0.8, 0.95), (0, 1)],
    ],
    "C": [_C],
    "D": [[(0, 0), (0, 1)], [(0, 0), (0.6, 0.05), (0.95, 0.35), (0.95, 0.65), (0.6, 0.95), (0, 1)]],
    "E": [[(0.9, 0), (0, 0), (0, 1), (0.9, 1)], [(0, 0.5), (0.7, 0.5)]],
    "F": [[(0.9, 0), (0, 0), (0, 1)], [(0, 0.5), (0.7, 0.5)]],
    "G": [[*_C, (0.95, 0.55), (0.6, 0.55)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "J": [[(0.8, 0), (0.8, 0.75), (0.6, 1), (0.3, 1), (0.1, 0.75)]],
    "K": [[(0, 0), (0, 1)], [(0.9, 0), (0, 0.55), (0.95, 1)]],
    "L": [[(0, 0), (0, 1), (0.85, 1)]],
    "M": [[(0, 1), (0.1, 0), (0.5, 0.7), (0.9, 0), (1, 1)]],
    "N": [[(0, 1), (0, 0), (1, 1), (1, 0)]],
    "O": [_O],
    "P": [_P],
    "Q": [_O, [(0.6, 0.65), (1, 1.05)]],
    "R": [_P, [(0.4, 0.52), (0.95, 1)]],
    "S": [
        [
            *((0.9, 0.15), (0.6, 0), (0.25, 0.05), (0.1, 0.25), (0.3, 0.45), (0.7, 0.55)),
            *((0.9, 0.75), (0.7, 0.97), (0.3, 1), (0.05, 0.85)),
        ]
    ],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1)]],
    "U": [[(0, 0), (0, 0.7), (0.25, 1), (0.75, 1), (1, 0.7), (1, 0)]],
    "V": [[(0, 0), (0.5, 1), (1, 0)]],
    "W": [[(0, 0), (0.25, 1), (0.5, 0.35), (0.75, 1), (1, 0)]],
    "X": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
    "Y": [[(0, 0), (0.5, 0.5), (1, 0)], [(0.5, 0.5), (0.5, 1)]],
    "Z": [[(0, 0), (1, 0), (0, 1), (1, 1)]],
    "a": [
        [(0.9, 0.15), (0.5, 0), (0.1, 0.3), (0.1, 0.75), (0.5, 1), (0.9, 0.7), (0.9, 0), (0.9, 1)]
    ],
    "d": [[(0.85, 0.5), (0.4, 0.42), (0.1, 0.7), (0.4, 1), (0.85, 0.85)], [(0.85, 0), (0.85, 1)]],
    "e": [
        [
            (0.1, 0.5),
            (0.9, 0.5),
            (0.8, 0.1),
            (0.4, 0),
            (0.1, 0.4),
            (0.2, 0.9),
            (0.6, 1),
            (0.95, 0.8),
        ]
    ],
    "f": [[(0.9, 0.1), (0.6, 0), (0.4, 0.2), (0.4, 1)], [(0.1, 0.45), (0.8, 0.45)]],
    "h": [[(0.1, 0), (0.1, 1)], [(0.1, 0.6), (0.5, 0.42), (0.85, 0.6), (0.85, 1)]],
    "k": [[(0.1, 0), (0.1, 1)], [(0.8, 0.4), (0.15, 0.7), (0.85, 1)]],
    "m": [
        [(0, 1), (0, 0.2), (0.25, 0), (0.5, 0.25), (0.5, 1)],
        [(0.5, 0.25), (0.75, 0), (1, 0.25), (1, 1)],
    ],
    "n": [[(0.1, 0), (0.1, 1)], [(0.1, 0.3), (0.5, 0), (0.9, 0.3), (0.9, 1)]],
    "r": [[(0.2, 0), (0.2, 1)], [(0.2, 0.35), (0.5, 0.05), (0.9, 0.1)]],
    "t": [[(0.45, 0), (0.45, 0.8), (0.65, 1), (0.9, 0.9)], [(0.1, 0.3), (0.85, 0.3)]],
}
NAMES = sorted(LETTERS)
QUESTIONS_OF_BASE = (
    (("Which letter is written here?", "Which letter is this?", "What letter do you see?"), str),
    (("Is it a capital?", "Is this letter a capital?"), lambda x: "yes" if x.isupper() else "no"),
    (("Does it come before m?", "Is this before m?"), lambda x: "yes" if x.lower() < "m" else "no"),
)


def draw(letter: str, generator: random.Random) -> Image.Image:
    """Draw a letter as the digits of the demo look: dark ink, 28 x 28, enlarged to 112 x 112."""
    big = 4 * TILE
    canvas = Image.new("L", (big, big), 0)
    pen = ImageDraw.Draw(canvas)
    height = generator.uniform(0.55, 0.78) * big
    width = height * generator.uniform(0.45, 1.0)
    slant, turn = generator.uniform(-0.35, 0.35), generator.uniform(-0.25, 0.25)
    thickness = generator.uniform(5, 15)
    shift = [generator.uniform(-0.05, 0.05) * big for _ in range(2)]
    for stroke in LETTERS[letter]:
        points = [
            (x - 0.5 + generator.gauss(0, 0.05), y - 0.5 + generator.gauss(0, 0.04))
            for x, y in stroke
        ]
        placed = []
        for x, y in _smooth(points):
            x, y = x * width - slant * y * height, y * height
            placed.append((x - turn * y + big / 2 + shift[0], y + turn * x + big / 2 + shift[1]))
        pen.line(placed, fill=255, width=round(thickness), joint="curve")
        for x, y in placed:
            r = thickness / 2
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    small = canvas.resize((TILE, TILE), Image.Resampling.BOX)
    return ImageOps.invert(small).resize((TILE * SCALE, TILE * SCALE), Image.Resampling.BICUBIC)


def _smooth(points: Stroke) -> Stroke:
    """Round the corners of a stroke by cutting them twice."""
    for _ in range(2):
        cut = [points[0]]
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            cut.append((0.75 * x0 + 0.25 * x1, 0.75 * y0 + 0.25 * y1))
            cut.append((0.25 * x0 + 0.75 * x1, 0.25 * y0 + 0.75 * y1))
        points = [*cut, points[-1]]
    return points


def write_letters(folder: Path, num_pictures: int, seed: int) -> Path:
    """Write pictures and LLaVA records of letters; return the records' file."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(num_pictures):
        letter = generator.choice(NAMES)
        draw(letter, generator).save(folder / f"{number}.png", compress_level=1)
        asked = generator.sample(QUESTIONS_OF_BASE, len(QUESTIONS_OF_BASE))
        turns = []
        for position, (wordings, answer) in enumerate(asked):
            tag = "<image>\n" if position == 0 else ""
            turns.append({"from": "human", "value": tag + generator.choice(wordings)})
            turns.append({"from": "gpt", "value": answer(letter)})
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    file = folder / "letters.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def main() -> None:
    """Make the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num_pictures", type=int, default=50000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    questions = [*QUESTIONS_OF_BASE, *((q.wordings, q.answer) for q in QUESTIONS)]
    texts = [wording for wordings, _ in questions for wording in wordings]
    texts += [*NAMES, *map(str, range(10)), "even", "odd", "yes", "no"]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        start = write_tiny_checkpoint(
            work / "start",
            seed=arguments.seed,
            num_crops=1,
            tokenizer=make_small_tokenizer(texts),
        )
        data = write_letters(work / "letters", arguments.num_pictures, arguments.seed)
        run, _ = parse_arguments(
            [
                *("--model_id", str(start), "--data_path", str(data)),
                *("--image_folder", str(data.parent), "--output_dir", str(work / "run")),
                *("--num_crops", "1", "--per_device_train_batch_size", "16"),
                *("--gradient_accumulation_steps", "1", "--learning_rate", "1.5e-3"),
                *("--lr_scheduler_type", "cosine", "--warmup_steps", "0.05"),
                *("--weight_decay", "0.02", "--report_to", "none", "--save_strategy", "no"),
                *("--dataloader_num_workers", "1", "--logging_steps", "100"),
                *("--seed", str(arguments.seed), "--use_cpu", "True"),
            ]
        )
        train.run(run)
        shutil.rmtree(arguments.folder, ignore_errors=True)
        model = load_model(work / "run").to(torch.bfloat16)
        # Several shards: a file of the repository stays below 500 kB.
        model.save_pretrained(arguments.folder, max_shard_size="480KB")
        load_processor(work / "run").save_pretrained(arguments.folder)
        carry_code_files(None, arguments.folder)


if __name__ == "__main__":
    main()
