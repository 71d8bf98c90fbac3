"""Synthetic samples with the shapes of real ones; only their content is random."""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.models import FIRST_TEXT_ID, IMAGE_TOKEN_ID
from phi3v.data.encoding import IGNORE_INDEX, Example
from phi3v.data.packing import plan_packs
from phi3v.model.crops import CropGrid, num_image_tokens, plan_crops

CROP = 336
# Width and height of pictures, and how often each occurs among those of instruction data.
SHAPES = (
    ((1344, 1008), 0.34),
    ((1008, 1344), 0.12),
    ((1024, 1024), 0.18),
    ((1920, 1080), 0.12),
    ((1500, 1000), 0.12),
    ((1240, 1754), 0.08),
    ((1800, 600), 0.04),
)
TEXT_ONLY_SHARE = 0.06


def sample(
    shapes: Sequence[tuple[int, int]],
    num_text: int,
    *,
    num_crops: int,
    vocabulary: int,
    seed: int,
    prefix_seed: int | None = None,
) -> Example:
    """Make a sample: pictures, then text whose second half is supervised.

    Args:
        shapes: Width and height of every picture in pixels.
        num_text: Tokens of question and answer together.
        num_crops: Most crops of a picture.
        vocabulary: Size of the vocabulary.
        seed: Decides the text.
        prefix_seed: Decides the pixels; samples with the same one ask about the same pictures.
    """
    text = np.random.default_rng(seed).integers(FIRST_TEXT_ID, vocabulary, num_text)
    pixels = torch.Generator().manual_seed(seed if prefix_seed is None else prefix_seed)
    ids, crops, sizes = [1], [], []
    for width, height in shapes:
        plan = plan_crops(width, height, num_crops, CROP)
        grid = CropGrid(plan.grid.rows, plan.grid.columns)
        ids += [IMAGE_TOKEN_ID] * num_image_tokens(grid)
        number = grid.rows * grid.columns
        crops.append(
            torch.randint(0, 256, (number, 3, CROP, CROP), dtype=torch.uint8, generator=pixels)
        )
        sizes.append((plan.padded_height, plan.padded_width))
    start = len(ids) + num_text // 2
    ids += text.tolist()
    labels = [IGNORE_INDEX] * start + ids[start:]
    example = Example(
        input_ids=torch.tensor(ids),
        labels=torch.tensor(labels),
        image_sizes=sizes,
        num_dropped_turns=0,
    )
    if crops:
        example["pixel_values"] = torch.cat(crops)
    return example


def draw_shapes(count: int, seed: int = 0) -> list[tuple[list[tuple[int, int]], int]]:
    """Draw pictures and number of text tokens of samples, as instruction data mixes them."""
    rng = np.random.default_rng(seed)
    weights = np.array([weight for _, weight in SHAPES])
    drawn = []
    for _ in range(count):
        text = int(np.clip(rng.lognormal(np.log(220), 0.6), 24, 1500))
        shape = SHAPES[rng.choice(len(SHAPES), p=weights)][0]
        drawn.append(([] if rng.random() < TEXT_ONLY_SHARE else [shape], text))
    return drawn


def token_count(shapes: Sequence[tuple[int, int]], num_text: int, num_crops: int) -> int:
    """Count the tokens of a sample without making it."""
    grids = [plan_crops(*shape, num_crops, CROP).grid for shape in shapes]
    return 1 + num_text + sum(num_image_tokens(grid) for grid in grids)


def crop_count(shapes: Sequence[tuple[int, int]], num_crops: int) -> int:
    """Count the crops of a sample with the global ones."""
    grids = [plan_crops(*shape, num_crops, CROP).grid for shape in shapes]
    return sum(grid.rows * grid.columns + 1 for grid in grids)


def typical_batch(
    size: int, num_crops: int, pool: int = 256
) -> list[tuple[list[tuple[int, int]], int]]:
    """Choose the batch whose share of padding is nearest to the mean over random batches."""
    drawn = draw_shapes(pool)
    lengths = np.array([token_count(*one, num_crops) for one in drawn])
    rows = lengths[: pool // size * size].reshape(-1, size)
    waste = 1 - rows.sum(1) / (size * rows.max(1))
    best = int(np.abs(waste - waste.mean()).argmin())
    return drawn[best * size : (best + 1) * size]


def make_groups(kind: str, *, num_crops: int, vocabulary: int) -> list[list[Example]]:
    """Make the samples of a step; those of one group ask about the same picture.

    Args:
        kind: ``mixed-N``: a typical batch of N samples. ``questions-N``: N questions about one
            picture. ``images-N``: one sample with N small pictures, ``pictures-N``: with N of usual
            size. ``shared-N``: four questions about each of N pictures, ``apart-N``: the same, each
            with its picture. ``text-N``: documents of 2048 tokens, N tokens in all.
        num_crops: Most crops of a picture.
        vocabulary: Size of the vocabulary.
    """
    name, _, number = kind.partition("-")
    count = int(number)
    rest = {"num_crops": num_crops, "vocabulary": vocabulary}
    if name == "mixed":
        batch = typical_batch(count, num_crops)
        return [[sample(*one, seed=index, **rest)] for index, one in enumerate(batch)]
    if name == "questions":
        shape = [SHAPES[0][0]]
        return [[sample(shape, 40, seed=i, prefix_seed=99, **rest) for i in range(count)]]
    if name == "images":
        return [[sample([(336, 336)] * count, 200, seed=0, **rest)]]
    if name == "pictures":
        return [[sample([SHAPES[0][0]] * count, 300, seed=0, **rest)]]
    if name in ("shared", "apart"):
        shape = [SHAPES[0][0]]
        groups = [
            [sample(shape, 40, seed=4 * own + i, prefix_seed=own, **rest) for i in range(4)]
            for own in range(count)
        ]
        return groups if name == "shared" else [[one] for group in groups for one in group]
    if name == "text":
        length = min(count, 2048)
        return [[sample([], length - 1, seed=i, **rest)] for i in range(count // length)]
    raise ValueError(f"unknown batch {kind!r}")


def make_packs(
    pack_tokens: int, count: int, *, num_crops: int, vocabulary: int
) -> list[list[list[Example]]]:
    """Make the samples of the first packs of a run on instruction data.

    Args:
        pack_tokens: Room of a pack.
        count: Number of packs.
        num_crops: Most crops of a picture.
        vocabulary: Size of the vocabulary.
    """
    drawn = [one for one in draw_shapes(512) if token_count(*one, num_crops) <= pack_tokens]
    lengths = np.array([token_count(*one, num_crops) for one in drawn])
    packs = plan_packs(lengths, pack_tokens, seed=0)
    rest = {"num_crops": num_crops, "vocabulary": vocabulary}
    return [
        [[sample(*drawn[unit], seed=int(unit), **rest)] for unit in packs[place]]
        for place in range(count)
    ]
