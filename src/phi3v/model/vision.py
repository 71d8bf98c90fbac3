"""From pixels to image tokens: real crops, the CLIP tower, the arrangement, the projection.

Letters: N images, C real crops without the global ones, K crops with them (N global first, then C
in row order), P patches along a side of a crop, t = P / 2 tokens along a side, S side of a crop in
pixels, D vision width, H hidden size of the decoder, M image tokens of all images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phi3v.model.arrangement import arrangement
from phi3v.model.clip import CLIPVisionTower
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.crops import CropGrid, crop_grid

# Per channel, as in the published preprocessor_config.json.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# Most crops that a tower without gradients encodes at once: 64 keep its largest intermediate result
# at 0.3 GB in bfloat16, and fill any device.
CROP_BUDGET = 64


def normalize(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels (..., 3, height, width) into float32 by the published mean and std."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32).to(pixels.device, non_blocking=True)
        for values in (IMAGE_MEAN, IMAGE_STD)
    )
    return (pixels.to(torch.float32) / 255 - mean[:, None, None]) / std[:, None, None]


def global_view(image: Tensor, crop_size: int) -> Tensor:
    """Squash a normalised, padded image (3, height, width) to one crop (3, S, S), bicubic."""
    return nn.functional.interpolate(
        image[None].float(), size=(crop_size, crop_size), mode="bicubic", align_corners=False
    )[0]


def image_grids(image_sizes: Tensor | Sequence[Sequence[int]], crop_size: int) -> list[CropGrid]:
    """Read the crop grid of every image from its padded (height, width)."""
    sizes = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    return [crop_grid(int(height), int(width), crop_size) for height, width in sizes]


def crops_from_published(pixel_values: Tensor, grids: Sequence[CropGrid]) -> Tensor:
    """Take the real crops out of the published layout.

    Args:
        pixel_values: (N, num_crops + 1, 3, S, S), the global crop first, zero crops last.
        grids: Crop grid of every image.

    Returns:
        (K, 3, S, S): all global crops, then all others in order.
    """
    per_image = pixel_values.shape[1]
    if len(grids) != pixel_values.shape[0]:
        raise ValueError(
            f"pixel_values hold {pixel_values.shape[0]} images but image_sizes {len(grids)}"
        )
    order = [image * per_image for image in range(len(grids))]
    for image, grid in enumerate(grids):
        needed = grid.rows * grid.columns
        if needed >= per_image:
            raise ValueError(
                f"image {image} needs {needed} crops by its size but pixel_values hold "
                f"{per_image - 1}; pass image_sizes from the same processor call"
            )
        order.extend(image * per_image + 1 + crop for crop in range(needed))
    places = torch.tensor(order).to(pixel_values.device, non_blocking=True)
    return pixel_values.flatten(0, 1).index_select(0, places)


def crops_from_compact(pixel_values: Tensor, grids: Sequence[CropGrid]) -> Tensor:
    """Normalise compact crops on their device and make the global view of every image.

    Args:
        pixel_values: (C, 3, S, S) uint8, row by row, image after image.
        grids: Crop grid of every image.

    Returns:
        (K, 3, S, S) float32: all global crops, then all others in order.
    """
    counts = [grid.rows * grid.columns for grid in grids]
    if sum(counts) != pixel_values.shape[0]:
        raise ValueError(
            f"image_sizes ask for {sum(counts)} crops but pixel_values hold {pixel_values.shape[0]}"
        )
    crops = normalize(pixel_values)
    size = crops.shape[-1]
    views = []
    for grid, own in zip(grids, crops.split(counts), strict=True):
        rows = own.view(grid.rows, grid.columns, 3, size, size).permute(2, 0, 3, 1, 4)
        views.append(global_view(rows.reshape(3, grid.rows * size, grid.columns * size), size))
    return torch.cat([torch.stack(views), crops])


def check_image_tokens(num_places: int, num_tokens: int) -> None:
    """Check that a prompt has as many image places as its images make tokens.

    Raises:
        ValueError: It has more or fewer.
    """
    if num_places != num_tokens:
        raise ValueError(
            f"input_ids hold {num_places} image places but the images make {num_tokens} "
            "tokens; was a sequence cut inside an image, or are image_sizes of other images?"
        )


def merge_patches(features: Tensor) -> Tensor:
    """Join each 2x2 block of patches, row 0 first; (K, P * P, D) to (K * t * t, 4 * D)."""
    num_crops, num_patches, width = features.shape
    t = int(num_patches**0.5) // 2
    blocks = features.view(num_crops, t, 2, t, 2, width).transpose(2, 3)
    return blocks.reshape(num_crops * t * t, 4 * width)


class Phi3VImageProjection(nn.Sequential):
    """Two linear layers with GELU between them, from the merged features to the decoder's width."""

    def __init__(self, merged_size: int, hidden_size: int) -> None:
        super().__init__(
            nn.Linear(merged_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Project (M, 4 * D) to (M, H) in the type of the projection's own weights."""
        # It may train in float32 beside a bfloat16 tower, or the other way round.
        dtype = next(self.parameters()).dtype
        return super().forward(features.to(dtype))


class Phi3VImageEmbedding(nn.Module):
    """Turns the crops of a batch into image tokens of the decoder's width."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        merged = 4 * config.vision.hidden_size
        self.config = config
        self.img_processor = CLIPVisionTower(config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = Phi3VImageProjection(merged, config.hidden_size)

    def encode_crops(self, crops: Tensor) -> Tensor:
        """Run the tower; (K, 3, S, S) to (K, P * P, D), without a graph where it is frozen.

        All crops go through it in one call, or, where nothing is kept for a backward pass, in the
        fewest calls of at most ``CROP_BUDGET`` crops.
        """
        trains = any(parameter.requires_grad for parameter in self.img_processor.parameters())
        if torch.is_grad_enabled() and trains:
            return self.img_processor(crops)
        with torch.no_grad():
            parts = crops.split(CROP_BUDGET)
            return torch.cat([self.img_processor(part) for part in parts])

    def forward(
        self,
        pixel_values: Tensor | None,
        image_sizes: Tensor | Sequence[Sequence[int]],
        image_features: Tensor | None = None,
        are_stored: Sequence[bool] | None = None,
    ) -> Tensor:
        """Encode all images of a batch together; see ``encode_crops``.

        Args:
            pixel_values: Published layout, float (N, num_crops + 1, 3, S, S), or compact, uint8 (C,
                3, S, S).
            image_sizes: (N, 2) padded height and width in pixels.
            image_features: (K, P * P, D) output of the tower for the stored images; of each the
                global crop, then the others.
            are_stored: For each image whether it is a stored one, which has no pixels.

        Returns:
            (M, H) tokens of all images in order.

        Raises:
            ValueError: Sizes and pixels do not fit together.
        """
        grids = image_grids(image_sizes, self.config.crop_size)
        are_stored = are_stored or [False] * len(grids)
        features = [] if image_features is None else [image_features]
        if pixel_values is not None:
            own = [grid for grid, stored in zip(grids, are_stored, strict=True) if not stored]
            is_compact = pixel_values.dtype == torch.uint8
            make_crops = crops_from_compact if is_compact else crops_from_published
            features.insert(0, self.encode_crops(make_crops(pixel_values, own)))
        separators = torch.cat([self.sub_GN.view(1, -1), self.glb_GN.view(1, -1)])
        merged = [merge_patches(part).to(separators.dtype) for part in features]
        side = self.config.vision.tokens_per_side
        index = torch.from_numpy(arrangement(grids, side, are_stored))
        tokens = torch.cat([*merged, separators]).index_select(
            0, index.to(separators.device, non_blocking=True)
        )
        return self.img_projection(tokens)
