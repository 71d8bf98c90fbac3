"""Crop arithmetic against the published numbers."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file
from tests.reference.image import image_token_count, padded_picture

from phi3v.model.crops import CropGrid, crop_grid, num_image_tokens, plan_crops, tokens_per_side


# Published processor: (width, height, num_crops) -> padded height, padded width, tokens.
@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((336, 336, 1), (336, 336, 313)),
        ((336, 336, 4), (672, 672, 757)),
        ((336, 336, 16), (1344, 1344, 2509)),
        ((1344, 1008, 4), (672, 672, 757)),
        ((1344, 1008, 16), (1008, 1344, 1921)),
        ((672, 336, 4), (336, 672, 457)),
        ((672, 336, 16), (1008, 1680, 2353)),
        ((336, 672, 4), (672, 336, 469)),
        ((336, 672, 16), (1680, 1008, 2377)),
        ((4000, 250, 16), (336, 5376, 2473)),
        ((1, 500, 16), (5376, 336, 2653)),
        ((5376, 1, 16), (336, 5376, 2473)),
    ],
)
def test_padded_size_and_tokens_of_worked_examples(
    picture: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    plan = plan_crops(*picture)
    assert (plan.padded_height, plan.padded_width, num_image_tokens(plan.grid)) == expected


def test_whole_published_token_table(golden: Path) -> None:
    table = load_file(golden / "cases" / "image_token_table.safetensors")
    wrong = []
    for (width, height), row in zip(
        table["width_height"].tolist(), table["tokens_paddedw_paddedh"], strict=True
    ):
        for num_crops, expected in zip(table["num_crops"].tolist(), row.tolist(), strict=True):
            if 0 in expected[1:]:  # the published resize fails on these
                with pytest.raises(ValueError, match="too thin"):
                    plan_crops(width, height, num_crops)
                continue
            plan = plan_crops(width, height, num_crops)
            found = [num_image_tokens(plan.grid), plan.padded_width, plan.padded_height]
            if found != expected:
                wrong.append((width, height, num_crops, found, expected))
    assert not wrong, f"{len(wrong)} sizes differ, first: {wrong[0]}"


def test_golden_image_sizes(golden: Path) -> None:
    cases = json.loads((golden / "cases.json").read_text())
    items = next(case for case in cases["cases"] if case["kind"] == "image_processor")["items"]
    for item in items:
        if "error" in item:
            continue
        image = cases["images"][item["image"]]
        plan = plan_crops(image["width"], image["height"], item["num_crops"])
        assert [plan.padded_height, plan.padded_width] == item["image_size_hw"], item["key"]
        assert num_image_tokens(plan.grid) == item["num_img_tokens"], item["key"]


@pytest.mark.parametrize("crop_size", [28, 112, 336])
def test_plan_equals_plain_loops_on_random_sizes(crop_size: int) -> None:
    rng = random.Random(crop_size)
    for _ in range(40):
        width, height, num_crops = rng.randint(1, 90), rng.randint(1, 90), rng.randint(1, 16)
        try:
            plan = plan_crops(width, height, num_crops, crop_size)
        except ValueError:
            continue
        padded = padded_picture(Image.new("RGB", (width, height)), num_crops, crop_size)
        assert (plan.padded_height, plan.padded_width) == padded.shape[:2]
        black = (
            padded[:, :, 0].min(axis=1).tolist().index(0),
            padded[:, :, 0].min(axis=0).tolist().index(0),
        )
        assert (plan.pad_top, plan.pad_left) == black
        tokens = num_image_tokens(plan.grid, tokens_per_side(crop_size, 14))
        assert tokens == image_token_count(plan.padded_height, plan.padded_width, crop_size)


def test_tall_picture_mirrors_the_plan_of_the_lying_one() -> None:
    tall, lying = plan_crops(300, 700, 16), plan_crops(700, 300, 16)
    assert tall.transposed and not lying.transposed
    assert (tall.resized_width, tall.resized_height) == (lying.resized_height, lying.resized_width)
    assert (tall.pad_left, tall.pad_top) == (lying.pad_top, lying.pad_left)
    assert tall.grid == CropGrid(lying.grid.columns, lying.grid.rows)


@pytest.mark.parametrize("num_crops", [0, 17, -1, 4.0, True, "4"])
def test_num_crops_out_of_range_is_refused(num_crops: object) -> None:
    with pytest.raises(ValueError, match="num_crops is .* from 1 to 16"):
        plan_crops(100, 100, num_crops)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("width", "height", "num_crops"), [(5377, 1, 16), (500, 1, 1), (1, 500, 1)]
)
def test_extreme_strip_is_refused(width: int, height: int, num_crops: int) -> None:
    with pytest.raises(ValueError, match=f"picture of {width} x {height} pixels is too thin"):
        plan_crops(width, height, num_crops)


def test_empty_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        plan_crops(0, 10, 4)


def test_grid_of_a_padded_size() -> None:
    assert crop_grid(1008, 1344) == CropGrid(rows=3, columns=4)
    assert crop_grid(112, 224, 112) == CropGrid(rows=1, columns=2)


@pytest.mark.parametrize("size", [(335, 336), (336, 0), (-336, 336), (112, 336)])
def test_size_that_is_not_made_of_crops_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="is not made of 336-pixel crops"):
        crop_grid(*size)


def test_tokens_follow_crop_and_patch_size() -> None:
    assert tokens_per_side(336, 14) == 12
    assert tokens_per_side(112, 14) == 4
    assert num_image_tokens(CropGrid(1, 1), tokens_per_side=4) == 41
