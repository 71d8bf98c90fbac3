"""From pictures to pixels: resize, pad and cut into crops, as the published image processor does.

Stands between files or PIL pictures and the model. Letters: N images, K real crops of all images,
S crop size in pixels.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from phi3v.model.config_fields import check_choice
from phi3v.model.configuration import PUBLISHED_REPOSITORY
from phi3v.model.crops import (
    CROP_SIZE,
    CropPlan,
    check_num_crops,
    crop_grid,
    num_image_tokens,
    plan_crops,
    tokens_per_side,
)
from phi3v.model.pictures import ImageLike, open_picture
from phi3v.model.vision import IMAGE_MEAN, IMAGE_STD, crops_from_compact

PATCH_SIZE = 14
_PUBLISHED_CODE = f"{PUBLISHED_REPOSITORY}--processing_phi3_v"
_WHITE = 255
# Pixels along a crop; three times the published side. Memory grows with its square.
_LARGEST = 1024


class Phi3VImagesKwargs(ImagesKwargs, total=False):
    """Settings that `from_pretrained` may override beside the library's own."""

    num_crops: int
    patch_size: int
    num_img_tokens: int


class Phi3VImageProcessor(BaseImageProcessor):
    """Cut pictures into the crops that Phi-3-vision reads.

    Args:
        num_crops: Largest number of crops of an image, 1 to 16, the global crop not counted.
        crop_size: Side of a crop in pixels; 336 in the published models.
        patch_size: Side of a vision patch in pixels; 14 in the published models.
        image_mean: Mean of every channel; only the published values, as the model normalises
            compact pixels by them.
        image_std: Standard deviation of every channel, likewise.
        do_convert_rgb: Convert other picture modes to RGB; if off, they are refused.
        num_img_tokens: Published key, kept for programs that read it; nothing here depends on it.
        **kwargs: Other keys of preprocessor_config.json (auto_map, ...): kept, and saved again.

    Raises:
        ValueError: If num_crops is out of range, or mean or deviation are not the published ones.

    Source:
        Image processor of the published Phi-3-vision checkpoint.
    """

    valid_kwargs = Phi3VImagesKwargs
    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        num_crops: int = 16,
        crop_size: int = CROP_SIZE,
        patch_size: int = PATCH_SIZE,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        do_convert_rgb: bool = True,
        num_img_tokens: int = 144,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("image_processor_type", None)
        super().__init__(**kwargs)
        check_num_crops(num_crops)
        for name, value in {"crop_size": crop_size, "patch_size": patch_size}.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
                raise ValueError(f"{name} is {value!r}, expected a number from 1 to {_LARGEST}")
        check_choice("do_convert_rgb", do_convert_rgb, (True, False))
        given = [list(one) if isinstance(one, tuple) else one for one in (image_mean, image_std)]
        if given != [[*IMAGE_MEAN], [*IMAGE_STD]]:
            raise ValueError(
                f"image_mean {image_mean} and image_std {image_std} differ from the published "
                f"{IMAGE_MEAN} and {IMAGE_STD}; remove them, the model normalises by these only"
            )
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.do_convert_rgb = do_convert_rgb
        self.num_img_tokens = num_img_tokens

    def __call__(  # type: ignore[override]  # the library's options do not apply
        self,
        images: ImageLike | Sequence[ImageLike],
        pixel_format: str = "published",
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Turn pictures into model inputs.

        Args:
            images: One picture or a flat list: PIL picture, path, or uint8 array or tensor with
                the channels first or last.
            pixel_format: "published": normalised crops, the global crop first, zero crops behind.
                "compact": the real crops only, as uint8; the model does the rest on its device.
            return_tensors: "pt", "np", or None for lists around numpy pixels.

        Returns:
            `pixel_values`: float32 (N, num_crops + 1, 3, S, S), or compact uint8 (K, 3, S, S);
            `image_sizes`: int64 (N, 2), padded height and width;
            `num_img_tokens`: list of N token counts.

        Raises:
            ValueError: If there is no picture, one cannot be read, or an option is unknown.
            FileNotFoundError: If a path does not exist.
        """
        if pixel_format not in ("published", "compact"):
            raise ValueError(f"pixel_format is {pixel_format!r}, expected 'published' or 'compact'")
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors is {return_tensors!r}, expected 'pt', 'np' or None")
        pictures = list(images) if isinstance(images, (list, tuple)) else [images]
        if not pictures:
            raise ValueError(
                "images is an empty list: pass at least one picture, or call no image processor"
            )
        prepared = [self.prepare(cast(ImageLike, picture)) for picture in pictures]
        sizes = [size for _, size in prepared]
        if pixel_format == "compact":
            pixels = torch.from_numpy(np.concatenate([crops for crops, _ in prepared]))
        else:
            pixels = torch.stack([self._publish(crops, size) for crops, size in prepared])
        features = BatchFeature({"pixel_values": pixels, "image_sizes": torch.tensor(sizes)})
        if return_tensors != "pt":
            features["pixel_values"] = pixels.numpy()
            features["image_sizes"] = np.array(sizes) if return_tensors == "np" else sizes
        features["num_img_tokens"] = [self._count(size) for size in sizes]
        return features

    preprocess = __call__

    def prepare(
        self, image: ImageLike, size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Turn one picture into its real crops.

        Args:
            image: PIL picture, path, or uint8 array or tensor with the channels first or last.
            size: Original width and height of a picture that was decoded smaller; None takes the
                picture's own.

        Returns:
            uint8 crops (crops, 3, S, S), row by row and without the global crop, and the padded
            (height, width).

        Raises:
            ValueError: If the picture cannot be read or is too thin.
            FileNotFoundError: If a path does not exist.
        """
        picture = open_picture(image)
        if picture.mode != "RGB":
            if not self.do_convert_rgb:
                raise ValueError(
                    f"picture has mode {picture.mode}, expected RGB; set do_convert_rgb to true"
                )
            picture = picture.convert("RGB")
        plan = plan_crops(*(size or picture.size), self.num_crops, self.crop_size)
        crops = _cut(_resize(picture, plan), plan, self.crop_size)
        return crops, (plan.padded_height, plan.padded_width)

    def num_image_tokens(self, width: int, height: int) -> int:
        """Count the tokens of a picture from its size in pixels alone."""
        plan = self.plan(width, height)
        return self._count((plan.padded_height, plan.padded_width))

    def plan(self, width: int, height: int) -> CropPlan:
        """Decide how a picture of this size is resized, padded and cut."""
        return plan_crops(width, height, self.num_crops, self.crop_size)

    def to_dict(self) -> dict[str, Any]:
        """Give the content of preprocessor_config.json, in the published keys."""
        settings = super().to_dict()
        settings["processor_class"] = "Phi3VProcessor"
        if not settings.get("auto_map"):
            settings["auto_map"] = {
                "AutoImageProcessor": f"{_PUBLISHED_CODE}.Phi3VImageProcessor",
                "AutoProcessor": f"{_PUBLISHED_CODE}.Phi3VProcessor",
            }
        # Programs that know only the published form cut 336-pixel crops without these keys.
        if (self.crop_size, self.patch_size) == (CROP_SIZE, PATCH_SIZE):
            del settings["crop_size"], settings["patch_size"]
        return settings

    def _count(self, padded_size: tuple[int, int]) -> int:
        grid = crop_grid(*padded_size, self.crop_size)
        return num_image_tokens(grid, tokens_per_side(self.crop_size, self.patch_size))

    def _publish(self, crops: np.ndarray, padded_size: tuple[int, int]) -> Tensor:
        """Expand the crops of one image to float32 (num_crops + 1, 3, S, S)."""
        grid = crop_grid(*padded_size, self.crop_size)
        real = crops_from_compact(torch.from_numpy(crops), [grid])
        published = torch.zeros(self.num_crops + 1, *real.shape[1:])
        published[: len(real)] = real
        return published


def _resize(picture: Image.Image, plan: CropPlan) -> Image.Image:
    """Resize an RGB picture as the published processor does."""
    width, height = plan.resized_width, plan.resized_height
    if picture.size == (width, height):
        return picture
    if not plan.transposed:
        return picture.resize((width, height), Image.Resampling.BILINEAR)
    # Pillow resizes the width first and rounds in between, so a tall picture must be resized lying
    # down to give the published pixels.
    picture = picture.transpose(Image.Transpose.TRANSPOSE)
    picture = picture.resize((height, width), Image.Resampling.BILINEAR)
    return picture.transpose(Image.Transpose.TRANSPOSE)


def _cut(picture: Image.Image, plan: CropPlan, side: int) -> np.ndarray:
    """Put a resized RGB picture on white and cut it: uint8 (crops, 3, S, S), row by row.

    Every pixel is copied once out of Pillow, channel by channel, and once into its crop.
    """
    width, height = picture.size
    grid, top, left = plan.grid, plan.pad_top, plan.pad_left
    shape = (grid.rows, grid.columns, 3, side, side)
    is_padded = (width, height) != (plan.padded_width, plan.padded_height)
    crops = np.full(shape, _WHITE, np.uint8) if is_padded else np.empty(shape, np.uint8)
    for channel, name in enumerate("RGB"):
        plane = np.frombuffer(picture.tobytes("raw", name), np.uint8).reshape(height, width)
        for row, column in np.ndindex(grid.rows, grid.columns):
            y, x = row * side - top, column * side - left
            y_start, y_end = max(y, 0), min(y + side, height)
            x_start, x_end = max(x, 0), min(x + side, width)
            crop = crops[row, column, channel]
            crop[y_start - y : y_end - y, x_start - x : x_end - x] = plane[
                y_start:y_end, x_start:x_end
            ]
    return crops.reshape(-1, 3, side, side)
