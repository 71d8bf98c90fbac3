"""Real handwriting for the demo: bundled pictures of digits, written as a LLaVA data set.

The pictures and their licence are in `demo/data`. A sheet shows 28x28 tiles, row r the digit r.
The held-out pictures have a sheet of their own, so no seed and no size can mix them with the
training pictures.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageOps

TILE = 28
# 4 x 28 = 112 pixels: with `num_crops` 1 exactly one crop of the demo's tiny base, so nothing is
# resized again.
SCALE = 4
SHEETS = {"train": ("train_1.png", "train_2.png", "train_3.png"), "held_out": ("held_out.png",)}


@dataclass(frozen=True)
class Question:
    """One thing to ask about a digit.

    Attributes:
        name: Short name for tables and record ids.
        wordings: Ways to ask it; the first one is asked in evaluation.
        answer: Gives the exact answer for a digit from 0 to 9.
    """

    name: str
    wordings: tuple[str, ...]
    answer: Callable[[int], str]


DIGIT = Question(
    "digit",
    ("Which digit is written here?", "Which digit is this?", "What digit do you see?"),
    str,
)
PARITY = Question(
    "parity",
    ("Is it even or odd?", "Is this digit even or odd?"),
    lambda digit: "odd" if digit % 2 else "even",
)
SIZE = Question(
    "size",
    ("Is it greater than 4?", "Is this digit greater than 4?"),
    lambda digit: "yes" if digit > 4 else "no",
)
QUESTIONS = (DIGIT, PARITY, SIZE)


@dataclass(frozen=True)
class DemoData:
    """Where a written data set lies.

    Attributes:
        train_json: LLaVA records with every question as a turn, in a random order.
        eval_json: One record per held-out picture that asks for the digit.
        eval_other_json: The other questions about the same pictures, one record each.
        image_folder: Folder that the records' `image` entries are relative to.
    """

    train_json: Path
    eval_json: Path
    eval_other_json: Path
    image_folder: Path


def read_tiles(split: Literal["train", "held_out"]) -> list[list[Image.Image]]:
    """Read the bundled pictures of one split.

    Args:
        split: "train" (450 of each digit) or "held_out" (50 of each).

    Returns:
        Ten lists, one per digit, of grey 28x28 pictures, light ink on black as in the source.
    """
    tiles: list[list[Image.Image]] = [[] for _ in range(10)]
    for name in SHEETS[split]:
        with resources.files("phi3v.demo").joinpath("data", name).open("rb") as file:
            sheet = Image.open(file).convert("L")
        for digit in range(10):
            for left in range(0, sheet.width, TILE):
                box = (left, TILE * digit, left + TILE, TILE * (digit + 1))
                tiles[digit].append(sheet.crop(box))
    return tiles


def write_dataset(folder: Path, num_train: int, num_eval: int = 500, *, seed: int = 0) -> DemoData:
    """Write picture files and LLaVA records for training and evaluation.

    Digits are balanced: any two differ by at most one picture. The seed chooses the pictures,
    their order and the questions. Existing files of the same names are replaced.

    Args:
        folder: Where to write; made if it does not exist.
        num_train: Number of training pictures, 1 to 4500; one record each.
        num_eval: Number of held-out pictures, 1 to 500.
        seed: Seed of every choice; the same seed writes the same files.

    Returns:
        The paths of what was written.

    Raises:
        ValueError: When a number is outside the range of the bundled pictures.
    """
    generator = random.Random(seed)
    train = _choose("num_train", num_train, read_tiles("train"), generator)
    held_out = _choose("num_eval", num_eval, read_tiles("held_out"), generator)
    data = DemoData(
        folder / "train.json", folder / "eval.json", folder / "eval_other.json", folder / "images"
    )
    train_images = _write_pictures(data.image_folder, "train", train)
    eval_images = _write_pictures(data.image_folder, "eval", held_out)
    _write_json(
        data.train_json,
        [
            _record(image, digit, _ask_all(generator))
            for image, (digit, _) in zip(train_images, train, strict=True)
        ],
    )
    for path, questions in ((data.eval_json, (DIGIT,)), (data.eval_other_json, (PARITY, SIZE))):
        _write_json(
            path,
            [
                _record(image, digit, [(question, question.wordings[0])], suffix=question.name)
                for image, (digit, _) in zip(eval_images, held_out, strict=True)
                for question in questions
            ],
        )
    return data


def is_right(answer: str, expected: str) -> bool:
    """Tell whether the whole answer, outer white space aside, is the expected one."""
    return answer.strip() == expected


def _choose(
    name: str, number: int, tiles: list[list[Image.Image]], generator: random.Random
) -> list[tuple[int, Image.Image]]:
    """Choose `number` pictures balanced over the digits, in a random order."""
    available = sum(len(pictures) for pictures in tiles)
    if not 1 <= number <= available:
        raise ValueError(
            f"{name} is {number}, but the demo bundles {available} such pictures; "
            f"give a number from 1 to {available}"
        )
    # The surplus of a number that ten does not divide goes to digits chosen at random.
    surplus = set(generator.sample(range(10), number % 10))
    chosen = [
        (digit, tile)
        for digit, pictures in enumerate(tiles)
        for tile in generator.sample(pictures, number // 10 + (digit in surplus))
    ]
    generator.shuffle(chosen)
    return chosen


def _write_pictures(
    folder: Path, prefix: str, pictures: Sequence[tuple[int, Image.Image]]
) -> list[str]:
    """Write pictures as dark ink on white paper; return file names that don't tell the digit."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}_{index:04d}.png" for index in range(len(pictures))]
    size = (TILE * SCALE, TILE * SCALE)
    for name, (_, tile) in zip(names, pictures, strict=True):
        ImageOps.invert(tile).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return names


def _ask_all(generator: random.Random) -> list[tuple[Question, str]]:
    """Put every question once, in a random order and wording."""
    questions = generator.sample(QUESTIONS, len(QUESTIONS))
    return [(question, generator.choice(question.wordings)) for question in questions]


def _record(
    image: str, digit: int, asked: Sequence[tuple[Question, str]], suffix: str | None = None
) -> dict[str, Any]:
    """Build one LLaVA record; the image tag stands in the first user turn."""
    conversations = []
    for position, (question, wording) in enumerate(asked):
        tag = "<image>\n" if position == 0 else ""
        conversations.append({"from": "human", "value": tag + wording})
        conversations.append({"from": "gpt", "value": question.answer(digit)})
    stem = Path(image).stem
    record_id = f"{stem}_{suffix}" if suffix else stem
    return {"id": record_id, "image": image, "conversations": conversations}


def _write_json(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
