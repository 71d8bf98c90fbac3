"""Crop arithmetic of one picture: sizes, padding, crop grid and number of image tokens.

Plain integers and no tensors. The image processor cuts pictures by these numbers and the model
arranges its image features by them, so the two cannot disagree.
"""

from dataclasses import dataclass
from math import ceil

CROP_SIZE = 336
MAX_NUM_CROPS = 16
TOKENS_PER_SIDE = 12


@dataclass(frozen=True)
class CropGrid:
    """Rows and columns of crops in a padded picture, the global crop not counted."""

    rows: int
    columns: int


@dataclass(frozen=True)
class CropPlan:
    """How one picture becomes a grid of crops; all sizes are in pixels of the upright picture.

    Attributes:
        resized_width: Width after the resize.
        resized_height: Height after the resize.
        padded_width: Width with the white bars, a multiple of the crop size.
        padded_height: Height with the white bars, a multiple of the crop size.
        pad_left: Width of the bar on the left.
        pad_top: Height of the bar on top.
        transposed: Whether the picture is taller than wide and must be resized on its transpose.
        grid: Rows and columns of crops.
    """

    resized_width: int
    resized_height: int
    padded_width: int
    padded_height: int
    pad_left: int
    pad_top: int
    transposed: bool
    grid: CropGrid


def plan_crops(width: int, height: int, num_crops: int, crop_size: int = CROP_SIZE) -> CropPlan:
    """Decide how a picture is resized, padded and cut.

    Args:
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        num_crops: Largest number of crops, 1 to 16, the global crop not counted.
        crop_size: Side of a crop in pixels.

    Returns:
        The plan. The long side is a multiple of the crop size, the short side is padded to one.

    Raises:
        ValueError: If num_crops is out of range, or the picture is so thin that it would vanish.

    Source:
        Image processor of the published Phi-3-vision checkpoint.
    """
    check_num_crops(num_crops)
    if width < 1 or height < 1:
        raise ValueError(
            f"picture of {width} x {height} pixels: both sides must be at least 1 pixel"
        )
    transposed = width < height
    long_side, short_side = (height, width) if transposed else (width, height)
    # These two divisions in this order, in doubles: another order can move the result by a pixel.
    ratio = long_side / short_side
    scale = _largest_scale(ratio, num_crops)
    new_long = crop_size * scale
    new_short = int(new_long / ratio)
    if new_short == 0:
        raise ValueError(
            f"picture of {width} x {height} pixels is too thin for num_crops {num_crops}: resized "
            f"to {new_long} pixels its short side rounds to 0; crop the picture or raise num_crops"
        )
    padded_short = ceil(new_short / crop_size) * crop_size
    bar = (padded_short - new_short) // 2
    return CropPlan(
        resized_width=new_short if transposed else new_long,
        resized_height=new_long if transposed else new_short,
        padded_width=padded_short if transposed else new_long,
        padded_height=new_long if transposed else padded_short,
        pad_left=bar if transposed else 0,
        pad_top=0 if transposed else bar,
        transposed=transposed,
        grid=CropGrid(
            rows=(new_long if transposed else padded_short) // crop_size,
            columns=(padded_short if transposed else new_long) // crop_size,
        ),
    )


def check_num_crops(num_crops: int) -> None:
    """Refuse a number of crops that no published model was made for.

    Raises:
        ValueError: If num_crops is not an integer from 1 to 16.
    """
    if (
        isinstance(num_crops, bool)
        or not isinstance(num_crops, int)
        or not 1 <= num_crops <= MAX_NUM_CROPS
    ):
        raise ValueError(
            f"num_crops is {num_crops!r}, expected an integer from 1 to {MAX_NUM_CROPS}; "
            "Phi-3-vision was published with 16, Phi-3.5-vision with 4"
        )


def crop_grid(padded_height: int, padded_width: int, crop_size: int = CROP_SIZE) -> CropGrid:
    """Find the crop grid of a padded picture.

    Args:
        padded_height: Height in pixels, as the image processor gives it in image_sizes.
        padded_width: Width in pixels, likewise.
        crop_size: Side of a crop in pixels.

    Raises:
        ValueError: If a side is not a positive multiple of the crop size.
    """
    if (
        min(padded_height, padded_width) < 1
        or padded_height % crop_size
        or padded_width % crop_size
    ):
        raise ValueError(
            f"padded size {padded_height} x {padded_width} (height x width) is not made of "
            f"{crop_size}-pixel crops; pass the image_sizes that the image processor gives"
        )
    return CropGrid(padded_height // crop_size, padded_width // crop_size)


def num_image_tokens(grid: CropGrid, tokens_per_side: int = TOKENS_PER_SIDE) -> int:
    """Count the tokens that one picture takes in the prompt.

    Every crop and the global crop give tokens_per_side squared tokens, each feature row ends in one
    separator, and one separator stands before the global crop.

    Args:
        grid: Rows and columns of crops, the global crop not counted.
        tokens_per_side: Image tokens along one side of a crop: 12 for 336-pixel crops cut into
            14-pixel patches.

    Returns:
        Number of tokens; 1921 for 3 rows x 4 columns.

    Source:
        Image processor of the published Phi-3-vision checkpoint.
    """
    crops = grid.rows * grid.columns + 1
    return crops * tokens_per_side**2 + 1 + (grid.rows + 1) * tokens_per_side


def tokens_per_side(crop_size: int, patch_size: int) -> int:
    """Count the image tokens along one side of a crop; a token covers 2 x 2 patches."""
    return crop_size // patch_size // 2


def _largest_scale(ratio: float, num_crops: int) -> int:
    """Count crops along the long side up to the first number that needs too many crops."""
    scale = 1
    while (scale + 1) * ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    return scale
